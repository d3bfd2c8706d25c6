//! A server that handles each request with a function of the test, and records all requests. It panics if a test must fail.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request that the server received.
#[derive(Clone, Debug)]
pub struct Request {
    /// The path of the URL.
    pub path: String,
    /// The number of earlier requests for this path.
    pub nth: usize,
    headers: HashMap<String, String>,
}

impl Request {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A server on this machine, which runs until the process ends.
#[derive(Debug)]
pub struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server that calls `answer` for each request, in a separate thread and connection.
    pub fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (answer.clone(), log.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &log, &*answer));
            }
        });
        Self { address, asked }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// The requests for one path.
    pub fn asked_for(&self, path: &str) -> Vec<Request> {
        self.asked().into_iter().filter(|request| request.path == path).collect()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &(impl Fn(&Request, &mut TcpStream) + ?Sized)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers = lines.take_while(|line| !line.is_empty());
    let headers =
        headers.filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned()))).collect();
    let request = {
        let mut log = log.lock().unwrap();
        let nth = log.iter().filter(|request| request.path == path).count();
        log.push(Request { path, nth, headers });
        log[log.len() - 1].clone()
    };
    answer(&request, &mut stream);
}

/// Writes the status line and the headers of an answer.
pub fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)]) {
    let lines = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\r\n");
    let end = if headers.is_empty() { "\r\n" } else { "\r\n\r\n" };
    let _ = stream.write_all(format!("HTTP/1.1 {status} Some\r\nConnection: close\r\n{lines}{end}").as_bytes());
}

/// Writes a whole answer.
pub fn reply(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    let length = body.len().to_string();
    head(stream, status, &[headers, &[("Content-Length", &length)]].concat());
    let _ = stream.write_all(body);
}

/// Answers as file servers do, with the whole body or the requested range. After `most` bytes the connection is closed.
pub fn serve_file(request: &Request, stream: &mut TcpStream, body: &[u8], tag: &str, most: usize) {
    let range = request.header("range").filter(|_| request.header("if-range") == Some(tag));
    let start = range.map_or(0, |range| range["bytes=".len()..range.len() - 1].parse().unwrap());
    let length = (body.len() - start).to_string();
    let span = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
    match range {
        Some(_) => head(stream, 206, &[("Content-Length", &length), ("ETag", tag), ("Content-Range", &span)]),
        None => head(stream, 200, &[("Content-Length", &length), ("ETag", tag)]),
    }
    let _ = stream.write_all(&body[start..body.len().min(start.saturating_add(most))]);
}
