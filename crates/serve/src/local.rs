//! Whom a plain listener answers: programs of this machine, which a web page in its browser is not.
//!
//! A page can send requests to loopback addresses, and by a name of its own that it lets point there (DNS rebinding) it can
//! read the answers too. Such a request shows in what a page cannot choose: the browser writes `Host` (`:authority`) and
//! `Origin` by itself.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use http::{HeaderValue, Request, StatusCode, Version, header};

/// Bytes of a foreign name that an answer and the log repeat.
const SHOWN_BYTES_MAX: usize = 100;

/// Why a request is not for this listener.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Foreign {
    /// RFC 9112, section 3.2.
    #[error("a request over HTTP/1.1 has one `Host` header, this one has {0}")]
    Hosts(usize),
    #[error(
        "host `{0}` is not this machine: without TLS only `localhost` and loopback addresses are served; \
         call by one of them, or set `Host` in the proxy between"
    )]
    Host(String),
    #[error("a page of `{0}` called: without TLS only pages of this address are served")]
    Origin(String),
}

impl Foreign {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Hosts(_) => StatusCode::BAD_REQUEST,
            Self::Host(_) | Self::Origin(_) => StatusCode::FORBIDDEN,
        }
    }

    /// The first is a warning; a page can send as many more as it likes.
    pub(crate) fn log(&self) {
        static SAID: AtomicBool = AtomicBool::new(false);
        match SAID.swap(true, Relaxed) {
            false => tracing::warn!(reason = %self, "a request is refused; further ones are logged as details"),
            true => tracing::debug!(reason = %self, "a request is refused"),
        }
    }
}

/// An error where the request names another machine than this one, or comes from a page of another address.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), Foreign> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.count());
    if more > 0 || (host.is_none() && request.version() == Version::HTTP_11) {
        return Err(Foreign::Hosts(host.map_or(0, |_| 1 + more)));
    }
    // HTTP/2 has it in the target, HTTP/1 may.
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    for host in target.into_iter().chain(host.map(HeaderValue::as_bytes)) {
        if !std::str::from_utf8(host).is_ok_and(is_loopback) {
            return Err(Foreign::Host(shown(host)));
        }
    }
    let own = target.or(host.map(HeaderValue::as_bytes));
    for origin in request.headers().get_all(header::ORIGIN) {
        let origin = origin.as_bytes();
        let page = [b"http://".as_slice(), b"https://"].iter().find_map(|scheme| origin.strip_prefix(*scheme));
        if !page.is_some_and(|page| own.is_some_and(|own| own.eq_ignore_ascii_case(page))) {
            return Err(Foreign::Origin(shown(origin)));
        }
    }
    Ok(())
}

/// True for `localhost`, names beneath it (RFC 6761, section 6.3) and loopback addresses, with a port or without.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| ""), port),
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (host.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| host), port)
        }
    };
    let port_is_one = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    port_is_one
        && match host {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(name) => {
                let top = name.strip_suffix('.').unwrap_or(name).rsplit('.').next();
                top.is_some_and(|top| top.eq_ignore_ascii_case("localhost"))
            }
        }
}

fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.get(..SHOWN_BYTES_MAX).unwrap_or(text));
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        let own = [
            "localhost",
            "LocalHost:8000",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "127.9.8.7:65535",
            "[::1]",
            "[::1]:8000",
            "[::ffff:127.0.0.1]:80",
        ];
        let foreign = [
            "",
            ":",
            ":80",
            "a",
            "localhost.example",
            "xlocalhost",
            "localhost:",
            "localhost:x",
            "localhost:65536",
            "localhost:+",
            "localhost@evil",
            "evil@localhost:80:80",
            "127.0.0.1.example",
            "128.0.0.1",
            "127.1",
            "0.0.0.0",
            "[::1",
            "::1",
            "[::2]",
            "[::1]x",
            "[127.0.0.1]",
            "127.0.0.1:80:80",
            "localhost/",
        ];
        let wrong: Vec<&str> = own.into_iter().filter(|name| !is_loopback(name)).collect();
        let taken: Vec<&str> = foreign.into_iter().filter(|name| is_loopback(name)).collect();
        assert!(wrong.is_empty() && taken.is_empty(), "{wrong:?} {taken:?}");
    }
}
