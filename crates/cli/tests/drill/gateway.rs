//! A gateway as some put in front of a server: it speaks TLS and asks nobody, and passes on what comes.

use std::{path::Path, sync::Arc};

use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// What it does to the first bytes of a connection.
type Change = fn(Vec<u8>) -> Vec<u8>;

/// A running gateway, ended when dropped.
pub struct Gateway {
    address: std::net::SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Gateway {
    /// With the server's certificate of a trust folder, in front of `server`.
    pub fn start(trust: &Path, server: &str, change: Change) -> Self {
        let chain = std::fs::read(trust.join("server.pem")).unwrap();
        let chain = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&std::fs::read(trust.join("server.key")).unwrap()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let mut config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(accept(listener, acceptor, server.to_owned(), change));
        Self { address, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, server: String, change: Change) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, server) = (acceptor.clone(), server.clone());
        tokio::spawn(async move {
            let mut outside = acceptor.accept(stream).await.ok()?;
            let mut inside = TcpStream::connect(server).await.ok()?;
            let mut first = vec![0; 64 * 1024];
            let read = outside.read(&mut first).await.ok()?;
            first.truncate(read);
            inside.write_all(&change(first)).await.ok()?;
            copy_bidirectional(&mut outside, &mut inside).await.ok()
        });
    }
}

/// Nothing is changed.
pub fn as_it_is(first: Vec<u8>) -> Vec<u8> {
    first
}

/// The path of the first request without its detours.
pub fn tidied(first: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8_lossy(&first).into_owned();
    let Some((line, rest)) = text.split_once("\r\n") else { return first };
    let Some([method, path, version]) = line.split(' ').collect::<Vec<_>>().first_chunk().copied() else {
        return first;
    };
    let path = path.replace("%2f", "/").replace("%2e", ".");
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("{method} /{} {version}\r\n{rest}", segments.join("/")).into_bytes()
}
