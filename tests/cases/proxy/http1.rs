//! HTTP/1.x through both proxies, byte for byte.

use remora_tests::{mesh::Pair, wire::Wire};

#[tokio::test]
async fn one_client_connection_carries_many_requests() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET /0 HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    for n in 0..3 {
        assert_eq!(server.head().await.line(), format!("GET /{n} HTTP/1.1"));
        server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nn{n}")).await;
        assert_eq!(client.head().await.status(), 200);
        client.expect(&format!("n{n}")).await;
        client.send(format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", n + 1)).await;
    }
    assert_eq!(server.head().await.line(), "GET /3 HTTP/1.1");
    assert!(!app.has_caller().await, "the application's connection is reused");
    pair.client
        .until("remora_tcp_connections_total", &[("direction", "outbound"), ("tls", "mtls")], 1)
        .await;
    pair.server.until("remora_inbound_http_requests_total", &[("tls", "mtls")], 4).await;
    let plain = pair.server.metric("remora_inbound_http_requests_total", &[("tls", "none")]).await;
    assert_eq!(plain, 0);
}

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
async fn http_1_0_clients_are_served_with_and_without_host() {
    let (pair, app) = Pair::with_app(&[]).await;
    for request in ["GET /a HTTP/1.0\r\n\r\n", "GET /a HTTP/1.0\r\nHost: orders\r\n\r\n"] {
        let mut client = Wire::dial(pair.entry()).await;
        client.send(request).await;
        let mut server = app.accept().await;
        let head = server.head().await;
        assert!(head.line().starts_with("GET /a HTTP/1."), "{head:?}");
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone").await;
        let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
        assert!(answer.ends_with("\r\n\r\ndone"), "{answer}");
    }
}

#[tokio::test]
async fn a_chunked_answer_reaches_an_http_1_0_client_without_chunks() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.0\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        .await;
    let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nbody"), "{answer}");
}

#[tokio::test]
async fn an_absolute_target_keeps_its_authority() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET http://orders.shop/x?y=1 HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
    let mut server = app.accept().await;
    let head = server.head().await;
    let line = head.line();
    assert!(
        line == "GET /x?y=1 HTTP/1.1" || line == "GET http://orders.shop/x?y=1 HTTP/1.1",
        "{line}"
    );
    assert_eq!(head.all("host"), ["orders.shop"]);
}

#[tokio::test]
async fn repeated_and_odd_fields_arrive_as_they_were_sent() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: orders\r\nX-ODD-Case: One\r\nx-many: 1\r\nX-Many: 2\r\n\
             X-Empty:\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.all("x-many"), ["1", "2"]);
    assert_eq!(head.all("x-empty"), [""]);
    assert_eq!(head.all("cookie"), ["a=1", "b=2"]);
    assert!(head.0.contains("X-ODD-Case: One"), "{head:?}");
    server
        .send(
            "HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-WEIRD: é\r\n\
             Content-Length: 0\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    assert_eq!(head.all("set-cookie"), ["a=1", "b=2"]);
    assert!(head.0.contains("X-WEIRD: "), "{head:?}");
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: orders\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-End: 1\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    for gone in ["x-hop", "keep-alive", "proxy-connection", "te"] {
        assert_eq!(head.get(gone), None, "{gone}");
    }
    assert_eq!(head.get("x-end"), Some("1"));
    server
        .send("HTTP/1.1 200 OK\r\nConnection: close, X-Back\r\nX-Back: 1\r\nContent-Length: 2\r\n\r\nok")
        .await;
    let head = client.head().await;
    assert_eq!(head.get("x-back"), None);
    assert_ne!(head.get("connection"), Some("close"), "the client's connection stays");
    client.expect("ok").await;
    client.send("GET /again HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    assert_eq!(app.accept().await.head().await.line(), "GET /again HTTP/1.1");
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_and_then_its_answer() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send("PUT / HTTP/1.1\r\nHost: orders\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    let play = async {
        let mut server = app.accept().await;
        let head = server.head().await;
        if head.get("expect").is_some() {
            server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        server.expect("body").await;
        server.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
        server
    };
    let call = async {
        assert_eq!(client.head().await.status(), 100);
        client.send("body").await;
        assert_eq!(client.head().await.status(), 201);
    };
    tokio::join!(play, call);
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET /chat HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: x\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.get("upgrade"), Some("websocket"));
    assert!(head.get("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    // The server speaks in the same segment as its head.
    server
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: y\r\n\r\nhello",
        )
        .await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("upgrade")), (101, Some("websocket")));
    client.expect("hello").await;
    client.send("\x00ping").await;
    server.expect("\x00ping").await;
    client.finish().await;
    assert!(server.rest().await.unwrap().is_empty());
    server.send("bye").await;
    drop(server);
    assert_eq!(client.rest().await.unwrap(), b"bye");
}

#[tokio::test]
async fn an_upgrade_that_is_refused_stays_http() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await;
    assert_eq!(client.head().await.status(), 426);
    client.expect("no").await;
    client.send("GET /plain HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut next = tokio::select! {
        head = server.head() => { assert_eq!(head.line(), "GET /plain HTTP/1.1"); server }
        mut other = app.accept() => { other.head().await; other }
    };
    next.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
}

#[tokio::test]
async fn connect_opens_a_tunnel() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    let mut server = app.accept().await;
    assert_eq!(server.head().await.line(), "CONNECT db:5432 HTTP/1.1");
    server.send("HTTP/1.1 200 Connection Established\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    client.send("up").await;
    server.expect("up").await;
    server.send("down").await;
    client.expect("down").await;
}

#[tokio::test]
async fn connect_that_names_no_port_is_a_bad_request() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("CONNECT db HTTP/1.1\r\nHost: db\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(head.status(), 400);
    assert!(!app.has_caller().await);
}

#[tokio::test]
async fn connect_that_is_refused_says_what_the_application_said() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nwho").await;
    assert_eq!(client.head().await.status(), 407);
    client.expect("who").await;
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
async fn a_head_beyond_the_limit_is_answered_431() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: orders\r\nX: {}", "x".repeat(70_000))).await;
    assert_eq!(client.head().await.status(), 431);
    let mut client = Wire::dial(pair.entry()).await;
    let many: String = (0..300).map(|n| format!("x-{n}: 1\r\n")).collect();
    client.send(format!("GET / HTTP/1.1\r\nHost: orders\r\n{many}\r\n")).await;
    assert_eq!(client.head().await.status(), 431);
    let reason = [("direction", "outbound"), ("reason", "header-too-large")];
    pair.client.until("remora_proxy_errors_total", &reason, 2).await;
    assert!(!app.has_caller().await);
}

#[tokio::test]
async fn a_target_beyond_the_limit_is_answered_414() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send(format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", "x".repeat(70_000))).await;
    assert_eq!(client.head().await.status(), 414);
    assert!(!app.has_caller().await);
}

#[tokio::test]
async fn what_looks_like_http_and_is_not_is_answered_400() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost orders\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 400);
    let reason = [("direction", "outbound"), ("reason", "bad-request")];
    pair.client.until("remora_proxy_errors_total", &reason, 1).await;
    assert!(!app.has_caller().await);
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

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let request = |n: u32| format!("GET /{n} HTTP/1.1\r\nHost: orders\r\n\r\n");
    client.send(request(1) + &request(2)).await;
    let mut server = app.accept().await;
    for n in 1..=2 {
        assert_eq!(server.head().await.line(), format!("GET /{n} HTTP/1.1"));
        server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}")).await;
    }
    for n in 1..=2 {
        assert_eq!(client.head().await.status(), 200);
        client.expect(&n.to_string()).await;
    }
}

#[tokio::test]
async fn two_lengths_that_differ_are_refused() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        )
        .await;
    assert_eq!(client.head().await.status(), 400);
    assert!(!app.has_caller().await);
}

#[tokio::test]
async fn interim_answers_do_not_stand_in_for_the_final_one() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server
        .send(
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
        .await;
    let mut head = client.head().await;
    while head.status() < 200 {
        head = client.head().await;
    }
    assert_eq!(head.status(), 200);
    client.expect("ok").await;
}
