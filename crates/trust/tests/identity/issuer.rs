//! A small HTTP server that serves an issuer's documents, as a test changes them.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// What a path is answered with: a status line's rest, and a body.
type Pages = BTreeMap<String, (&'static str, Vec<u8>)>;

pub struct Site {
    pub url: String,
    pages: Arc<Mutex<Pages>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let pages = Arc::new(Mutex::new(Pages::new()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (all, log) = (Arc::clone(&pages), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (pages, asked) = (Arc::clone(&all), Arc::clone(&log));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8_lossy(&head);
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    let (status, body) = pages.lock().get(&path).cloned().unwrap_or(("404 Not Found", Vec::new()));
                    asked.lock().push(path);
                    let head =
                        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&body).await;
                });
            }
        });
        Self { url, pages, asked }
    }

    /// An issuer with these keys.
    pub async fn issuer(keys: &[Value]) -> Self {
        let site = Self::start().await;
        let discovery = json!({ "issuer": site.url, "jwks_uri": format!("{}/jwks", site.url) });
        site.page("/.well-known/openid-configuration", "200 OK", discovery.to_string());
        site.keys(keys);
        site
    }

    pub fn keys(&self, keys: &[Value]) {
        self.page("/jwks", "200 OK", json!({ "keys": keys }).to_string());
    }

    pub fn page(&self, path: &str, status: &'static str, body: impl Into<Vec<u8>>) {
        self.pages.lock().insert(path.to_owned(), (status, body.into()));
    }

    /// How often a path was asked for.
    pub fn asked(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|asked| *asked == path).count()
    }
}
