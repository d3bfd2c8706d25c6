//! A server that does to each request what the test says, and remembers what it was asked. It panics where a test has to fail.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a server was asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The path of the address.
    pub path: String,
    /// How many requests for this path came before.
    pub nth: usize,
    headers: HashMap<String, String>,
}

impl Request {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A server on this machine, for as long as the process lives.
#[derive(Debug)]
pub struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Each request in a thread and a connection of its own.
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

    /// The address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests for one path.
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

/// The first lines of an answer.
pub fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)]) {
    let lines = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\r\n");
    let end = if headers.is_empty() { "\r\n" } else { "\r\n\r\n" };
    let _ = stream.write_all(format!("HTTP/1.1 {status} Some\r\nConnection: close\r\n{lines}{end}").as_bytes());
}

/// A whole answer.
pub fn reply(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    let length = body.len().to_string();
    head(stream, status, &[headers, &[("Content-Length", &length)]].concat());
    let _ = stream.write_all(body);
}

/// As servers of files do: the whole, or the range that was asked for; at most `most` bytes, then the connection is cut.
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
