use std::sync::Mutex;

use remora_core::drain::Drain;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
};

use super::*;
use crate::http::h1::{exchange, transfer::Transfer};

/// Answers every request with its own first line, and remembers what it refused.
#[derive(Default)]
struct Echo {
    refused: Mutex<Vec<u16>>,
    /// Answers errors instead.
    fails: bool,
}

impl Handler<DuplexStream> for Echo {
    async fn handle(&self, client: &mut Wire<DuplexStream>, request: RequestHead) -> After {
        let upload: Transfer = exchange::upload(&request);
        let response = if self.fails {
            super::answer::error(&Error::Overloaded("no room"), false)
        } else {
            Response::new(Bytes::from(format!("{} {}", request.method, request.path())))
        };
        super::answer(client, &request, &upload, &response, false).await
    }

    fn refused(&self, error: &Error) {
        self.refused.lock().unwrap().push(error.status().as_u16());
    }
}

/// A client of a server that runs until it has enough.
fn start(echo: Echo) -> (DuplexStream, JoinHandle<Vec<u16>>, Drain) {
    let (client, io) = duplex(64 * 1024);
    let (drain, watch) = Drain::new();
    let task = tokio::spawn(async move {
        serve(Wire::new(io, Vec::new()), &echo, HeaderSize::default(), &watch).await;
        echo.refused.into_inner().unwrap()
    });
    (client, task, drain)
}

async fn read(client: &mut DuplexStream) -> String {
    let mut bytes = vec![0; 4096];
    let n = client.read(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

async fn rest(client: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_to_its_end_is_408() {
    let (mut client, task, _drain) = start(Echo::default());
    let begun = Instant::now();
    // One byte every ten seconds, for as long as the server likes.
    let drip = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\n".iter().cycle() {
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        client
    });
    assert_eq!(task.await.unwrap(), [408]);
    assert!(begun.elapsed() <= HEAD_WITHIN + READ_OVER, "{:?}", begun.elapsed());
    let answer = rest(&mut drip.await.unwrap()).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request-timeout"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_may_be_idle_for_a_day_and_has_a_fresh_patience_then() {
    let (mut client, task, _drain) = start(Echo::default());
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        client.write_all(b"GET /x HTTP/1.1\r\n").await.unwrap();
        tokio::time::sleep(HEAD_WITHIN - Duration::from_secs(1)).await;
        client.write_all(b"Host: a\r\n\r\n").await.unwrap();
        assert!(read(&mut client).await.ends_with("GET /x"));
    }
    drop(client);
    assert!(task.await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn empty_lines_without_end_are_a_head_too() {
    let (mut client, task, _drain) = start(Echo::default());
    for _ in 0..10 {
        // Those that get no answer any more do not matter.
        let _ = client.write_all(b"\r\n").await;
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    assert_eq!(task.await.unwrap(), [408]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_wants_is_read_over_where_it_is_short() {
    let (mut client, task, _drain) = start(Echo { fails: true, ..Echo::default() });
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answers = String::new();
    while answers.matches("HTTP/1.1 503").count() < 2 {
        answers.push_str(&read(&mut client).await);
    }
    assert!(!answers.contains("close"), "{answers}");
    drop(client);
    assert!(task.await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_wants_ends_the_connection_where_it_is_long_or_waits() {
    for head in [
        "Content-Length: 1000000\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nExpect: 100-continue\r\n",
    ] {
        let (mut client, task, _drain) = start(Echo { fails: true, ..Echo::default() });
        client
            .write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n").as_bytes())
            .await
            .unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.contains("503") && answer.contains("connection: close"), "{answer}");
        drop(client);
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_on_after_its_refusal_is_read_over_for_a_moment_only() {
    let (mut client, task, _drain) = start(Echo::default());
    client.write_all(b"GET / HTTP/1.1\r\n no\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    let flood = tokio::spawn(async move {
        let chunk = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        while let Ok(n) = client.write(&chunk).await {
            sent += n;
        }
        sent
    });
    assert_eq!(task.await.unwrap(), [400]);
    assert!(begun.elapsed() <= READ_OVER);
    let sent = flood.await.unwrap();
    assert!(sent <= MAX_READ_OVER + 3 * 64 * 1024, "{sent}");
}

#[tokio::test(start_paused = true)]
async fn while_draining_an_idle_connection_is_kept_for_a_second() {
    let (mut client, task, drain) = start(Echo::default());
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read(&mut client).await;
    let draining = tokio::spawn(drain.drain(Duration::from_secs(60)));
    let begun = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert_eq!(begun.elapsed(), LINGER);
    drop(client);
    task.await.unwrap();
    draining.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_head_answer_has_a_length_and_no_body() {
    let (mut client, task, _drain) = start(Echo::default());
    client.write_all(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let answer = read(&mut client).await;
    assert!(answer.contains("content-length: 7\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    drop(client);
    task.await.unwrap();
}
