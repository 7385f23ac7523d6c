//! The way into REST: an inference goes straight to its handler, all else through the router.
//!
//! Nearly every request is an inference, and matching its path by hand costs a tenth of what the router takes.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, body::Body};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tower::Service;

use crate::{
    connection::Arriving,
    http::{infer_at, refusal},
    telemetry::App,
};

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Routes whose bodies must go on arriving, with the inferences of a server before them.
#[derive(Clone)]
pub(crate) struct Rest {
    app: App,
    router: Router,
    /// Inferences need not pass the router's layers.
    direct: bool,
}

impl Rest {
    /// The protocol of `app`. With an access log the router, which writes it, sees every call.
    pub(crate) fn new(app: App, router: Router) -> Self {
        let direct = app.telemetry.access.is_none();
        Self { app, router, direct }
    }

    /// Routes alone.
    pub(crate) fn plain(app: App, router: Router) -> Self {
        Self { app, router, direct: false }
    }
}

impl Service<Request<Incoming>> for Rest {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        if let Some(foreign) = self.app.foreign(&request) {
            let answer = refusal(foreign.status(), &foreign.to_string());
            self.app.telemetry.refused(&request, answer.status());
            return Box::pin(async { Ok(answer) });
        }
        let request = request.map(Arriving::body);
        if let (true, Some((model, version))) = (self.direct, inference(&request)) {
            let (app, model, version) = (self.app.clone(), model.to_owned(), version.map(str::to_owned));
            return Box::pin(async move { Ok(infer_at(app, model, version, request).await) });
        }
        let answer = self.router.call(request);
        Box::pin(answer)
    }
}

/// Model and version where the request is an inference and its path needs no decoding.
fn inference<B>(request: &Request<B>) -> Option<(&str, Option<&str>)> {
    if request.method() != Method::POST {
        return None;
    }
    let path = request.uri().path().strip_prefix("/v2/models/")?.strip_suffix("/infer")?;
    if path.is_empty() || path.contains('%') {
        return None;
    }
    match path.split_once('/') {
        None => Some((path, None)),
        Some((model, rest)) => {
            let version = rest.strip_prefix("versions/")?;
            (!model.is_empty() && !version.is_empty() && !version.contains('/')).then_some((model, Some(version)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_inferences_are_taken_before_the_router() {
        let table: [(&str, Option<(&str, Option<&str>)>); 9] = [
            ("/v2/models/m/infer", Some(("m", None))),
            ("/v2/models/m/versions/7/infer", Some(("m", Some("7")))),
            ("/v2/models/m%20n/infer", None),
            ("/v2/models//infer", None),
            ("/v2/models/m/versions//infer", None),
            ("/v2/models/m/versions/7/8/infer", None),
            ("/v2/models/m/other/7/infer", None),
            ("/v2/models/m/ready", None),
            ("/v2/models/infer", None),
        ];
        for (path, expected) in table {
            let request = Request::post(path).body(()).expect("a valid path");
            assert_eq!(inference(&request), expected, "{path}");
        }
        assert_eq!(inference(&Request::get("/v2/models/m/infer").body(()).expect("a valid path")), None);
    }
}
