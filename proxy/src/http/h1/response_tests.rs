use super::*;

fn request(text: &str) -> RequestHead {
    RequestHead::read(text.as_bytes()).unwrap().unwrap().0
}

fn get() -> RequestHead {
    request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn parse(text: &str, request: &RequestHead) -> Result<ResponseHead, BadResponse> {
    ResponseHead::read(text.as_bytes(), request).map(|read| read.unwrap().0)
}

/// What the client gets, and whether its connection lives on.
fn forwarded(text: &str, request: &RequestHead) -> (String, bool) {
    let mut head = parse(text, request).unwrap();
    let (_, persists) = head.adapt(Towards { request, last: false });
    let mut out = Vec::new();
    head.write(request, &mut out);
    (String::from_utf8(out).unwrap(), persists)
}

#[test]
fn what_has_no_reason_to_change_does_not() {
    let text = "HTTP/1.1 200 Very Fine\r\nX-ODD:one\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
                Content-Length: 3\r\n\r\n";
    assert_eq!(forwarded(text, &get()), (text.to_owned(), true));
    let text = "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n";
    assert_eq!(forwarded(text, &get()).0, text);
}

#[test]
fn a_body_is_as_long_as_method_status_and_fields_say() {
    let (get, head) = (get(), request("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"));
    for (request, text, framing) in [
        (&get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::Length(3)),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            Framing::Length(3),
        ),
        (&get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::Chunked),
        (&get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Framing::Chunked),
        (&get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Framing::UntilClose),
        (&get, "HTTP/1.0 200 OK\r\n\r\n", Framing::UntilClose),
        (&get, "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", Framing::None),
        (&get, "HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", Framing::None),
        (&get, "HTTP/1.1 103 Hints\r\n\r\n", Framing::None),
        (&head, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::None),
        (&head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::None),
    ] {
        assert_eq!(parse(text, request).unwrap().framing, framing, "{text:?}");
    }
}

#[test]
fn a_response_whose_end_is_not_certain_is_not_forwarded() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked,\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, , chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: \r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, Chunked\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 99 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        assert!(parse(text, &get()).is_err(), "{text:?}");
    }
}

#[test]
fn chunked_wins_over_a_length_and_the_connection_is_used_up() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
    let head = parse(text, &get()).unwrap();
    assert_eq!((head.framing, head.keep_alive), (Framing::Chunked, false));
    assert!(!forwarded(text, &get()).0.contains("Content-Length"));
    let asked = request("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = parse(text, &asked).unwrap();
    assert_eq!((head.framing, head.keep_alive), (Framing::None, false));
    assert!(!forwarded(text, &asked).0.contains("Content-Length"));
}

#[test]
fn a_coding_on_two_lines_is_no_coding() {
    for fold in ["\r\n ", "\n\t"] {
        let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip,{fold}chunked\r\n\r\n");
        assert!(parse(&text, &get()).is_err(), "{text:?}");
    }
}

#[test]
fn odd_lines_are_written_anew() {
    let text =
        "HTTP/1.1 200 OK\nX-Fold: one\r\n two\r\n\tthree\r\nX-Gap : 1\r\nContent-Length: 0\n\n";
    assert_eq!(
        forwarded(text, &get()).0,
        "HTTP/1.1 200 OK\r\nX-Fold: one   two  \tthree\r\nX-Gap: 1\r\nContent-Length: 0\r\n\r\n"
    );
}

#[test]
fn a_body_that_ends_with_its_connection_becomes_chunks() {
    let text = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n";
    assert_eq!(
        forwarded(text, &get()),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
                .into(),
            true
        )
    );
    assert!(!parse(text, &get()).unwrap().keep_alive);
}

#[test]
fn an_http_1_0_client_gets_no_chunks() {
    let old = request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(
        forwarded("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &old),
        ("HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n".into(), false)
    );
    assert_eq!(
        forwarded("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", &old),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n".into(), true)
    );
}

#[test]
fn close_is_said_to_clients_that_said_it() {
    let last = request("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let (text, persists) = forwarded("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", &last);
    assert!(!persists && text.ends_with("Connection: close\r\n\r\n"), "{text}");
}

#[test]
fn an_upstream_connection_persists_as_its_version_says() {
    for (text, persists) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", false),
    ] {
        assert_eq!(parse(text, &get()).unwrap().keep_alive, persists, "{text:?}");
    }
}

#[test]
fn an_upgrade_is_granted_refused_or_merely_offered() {
    let chat =
        request("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let text = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    assert!(parse(text, &chat).unwrap().leaves_http);
    assert_eq!(forwarded(text, &chat).0, text);
    let text = "HTTP/1.1 426 No\r\nUpgrade: h3\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n";
    assert!(forwarded(text, &chat).0.contains("Upgrade: h3"));
    let text =
        "HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(forwarded(text, &chat).0, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn a_tunnel_has_no_length() {
    let connect = request("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let head = parse(text, &connect).unwrap();
    assert!(head.leaves_http && head.framing == Framing::None);
    assert_eq!(forwarded(text, &connect).0, "HTTP/1.1 200 OK\r\n\r\n");
    let refused = parse("HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n", &connect).unwrap();
    assert!(!refused.leaves_http && refused.framing == Framing::Length(5));
}

#[test]
fn how_long_a_connection_is_kept_is_read() {
    for (field, kept) in [
        ("timeout=5", Some(5)),
        ("max=100, timeout=75", Some(75)),
        ("max=100", None),
        ("timeout=x", None),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\nKeep-Alive: {field}\r\nContent-Length: 0\r\n\r\n");
        let head = parse(&text, &get()).unwrap();
        assert_eq!(head.kept_for, kept.map(Duration::from_secs), "{field}");
        assert!(!forwarded(&text, &get()).0.contains("Keep-Alive"));
    }
}
