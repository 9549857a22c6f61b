//! Bodies: how they end, and that they arrive.

use remora_tests::{mesh::Pair, wire::Wire};

#[tokio::test]
async fn chunks_and_trailers_travel_both_ways() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "POST /sum HTTP/1.1\r\nHost: orders\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X-Sum\r\n\r\n3\r\none\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.all("transfer-encoding"), ["chunked"]);
    assert_eq!(head.get("content-length"), None);
    assert_eq!(server.until("one\r\n").await, "3\r\none\r\n");
    client.send("4\r\n two\r\n0\r\nX-Sum: 7\r\n\r\n").await;
    let rest = server.until("\r\n\r\n").await.to_ascii_lowercase();
    assert_eq!(rest, "4\r\n two\r\n0\r\nx-sum: 7\r\n\r\n");
    server
        .send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Got\r\n\r\n5\r\nfirst\r\n",
        )
        .await;
    assert_eq!(client.head().await.all("transfer-encoding"), ["chunked"]);
    assert_eq!(client.until("first\r\n").await, "5\r\nfirst\r\n", "chunks are not held back");
    server.send("0\r\nX-Got: 7\r\n\r\n").await;
    assert_eq!(client.until("\r\n\r\n").await.to_ascii_lowercase(), "0\r\nx-got: 7\r\n\r\n");
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_step() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let mut server: Option<Wire> = None;
    for (method, status, fields) in [
        ("HEAD", "200 OK", "Content-Length: 1234\r\n"),
        ("HEAD", "200 OK", "Transfer-Encoding: chunked\r\nETag: \"a\"\r\n"),
        ("GET", "204 No Content", ""),
        // Its length may be left out (RFC 9110 §15.4.5), its body must not be waited for.
        ("GET", "304 Not Modified", "Content-Length: 77\r\nETag: \"a\"\r\n"),
        ("GET", "200 OK", "Content-Length: 0\r\n"),
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: orders\r\n\r\n")).await;
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(app.accept().await),
        };
        assert_eq!(server.head().await.line(), format!("{method} / HTTP/1.1"));
        server.send(format!("HTTP/1.1 {status}\r\n{fields}\r\n")).await;
        let head = client.head().await;
        assert_eq!(head.status().to_string(), status[..3], "{method} {status}");
        if let Some((name, value)) = fields.lines().last().and_then(|last| last.split_once(": ")) {
            assert_eq!(head.get(name), Some(value), "{method} {status}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_the_connection_arrives_whole() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall ").await;
    server.send("of it").await;
    drop(server);
    let head = client.head().await;
    assert_eq!((head.status(), head.get("content-type")), (200, Some("text/plain")));
    if head.get("transfer-encoding").is_some() {
        let mut text = String::new();
        loop {
            let size = client.until("\r\n").await;
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let chunk = client.exactly(size + 2).await;
            if size == 0 {
                break;
            }
            text.push_str(std::str::from_utf8(&chunk[..size]).unwrap());
        }
        assert_eq!(text, "all of it");
    } else {
        assert_eq!(client.rest().await.unwrap(), b"all of it");
    }
}

#[tokio::test]
async fn an_answer_cut_short_is_not_passed_off_as_whole() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    client.until("half\r\n").await;
    drop(server);
    let rest = client.rest().await.unwrap_or_default();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn an_answer_during_the_upload_reaches_the_client_at_once() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1000000\r\n\r\nbeginning")
        .await;
    let mut server = app.accept().await;
    server.head().await;
    server.expect("beginning").await;
    server.send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 6\r\n\r\nenough").await;
    let head = client.head().await;
    assert_eq!(head.status(), 413);
    client.expect("enough").await;
}

#[tokio::test]
async fn a_mebibyte_up_and_down_arrives_unchanged() {
    let (pair, app) = Pair::with_app(&[]).await;
    let data: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut client = Wire::dial(pair.entry()).await;
    let call = async {
        let head =
            format!("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: {}\r\n\r\n", data.len());
        client.send(head).await;
        client.send(&data).await;
        assert_eq!(client.head().await.get("content-length"), Some("1048576"));
        client.exactly(data.len()).await
    };
    let play = async {
        let mut server = app.accept().await;
        server.head().await;
        let got = server.exactly(data.len()).await;
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n").await;
        server.send(&got).await;
        (got, server)
    };
    let (down, (up, _server)) = tokio::join!(call, play);
    assert!(up == data && down == data);
}
