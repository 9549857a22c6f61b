use super::*;
use proptest::prelude::*;

/// As a connection would read it.
fn parse(text: &str) -> Result<RequestHead, Refusal> {
    parse_bytes(text.as_bytes())
}

fn parse_bytes(bytes: &[u8]) -> Result<RequestHead, Refusal> {
    match RequestHead::read(bytes)? {
        Some((head, _)) => Ok(head),
        None => bad("no end"),
    }
}

fn with(fields: &str) -> Result<RequestHead, Refusal> {
    parse(&format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

/// What the next hop gets.
fn forwarded(text: &str) -> String {
    let mut out = Vec::new();
    parse(text).unwrap().write(b"", &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn what_has_no_reason_to_change_does_not() {
    let text = "GET /a?b=c HTTP/1.1\r\nhOsT:  a.b:80 \r\nX-Odd:\tone\r\nx-odd: two\r\nX-Empty:\r\n\
                Accept: é\r\n\r\n";
    assert_eq!(forwarded(text), text);
}

#[test]
fn where_parsers_disagree_about_the_end_nothing_is_forwarded() {
    for (fields, why) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "both lengths"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "both lengths, other order"),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", "twice the same"),
        ("Content-Length: 3\r\nContent-Length: 4\r\n", "two lengths"),
        ("Content-Length: 3, 3\r\n", "a list"),
        ("Content-Length: +3\r\n", "a sign"),
        ("Content-Length: -3\r\n", "a sign"),
        ("Content-Length: 0x3\r\n", "hexadecimal"),
        ("Content-Length: 3 3\r\n", "a space within"),
        ("Content-Length: \r\n", "nothing"),
        ("Content-Length: 18446744073709551616\r\n", "more than 64 bits"),
        ("Content-Length: 1e3\r\n", "an exponent"),
        ("Content-Length: ٣\r\n", "other digits"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "chunked twice"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "chunked and not"),
        ("Content-Length : 3\r\n", "a space before the colon"),
        ("Transfer-Encoding : chunked\r\n", "a space before the colon"),
        ("Content-Length\t: 3\r\n", "a tab before the colon"),
        (" Content-Length: 3\r\n", "a folded line"),
        ("X: 1\r\n Transfer-Encoding: chunked\r\n", "a folded line"),
        ("X: 1\r\n\tmore\r\n", "a folded line"),
        ("X: 1\nContent-Length: 3\r\n", "a bare line feed"),
        ("X: 1\rContent-Length: 3\r\n", "a bare carriage return"),
        ("X: 1\0\r\n", "a NUL"),
        ("X: 1\u{1}\r\n", "a control character"),
        ("X\u{7f}: 1\r\n", "DEL in a name"),
        ("X Y: 1\r\n", "a space in a name"),
        (": 1\r\n", "no name"),
        ("X\r\n", "no colon"),
        ("X(a): 1\r\n", "a comment in a name"),
        ("Host: b\r\n", "two hosts"),
    ] {
        let refused = with(fields).map(|_| ()).expect_err(why);
        assert_eq!(refused.status(), 400, "{why}: {refused}");
        assert_eq!(refused.reason(), Reason::BadRequest);
    }
}

#[test]
fn codings_that_are_not_chunked_alone_are_not_understood() {
    for coding in [
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "identity",
        "xchunked",
        "chunked;q=1",
        "\"chunked\"",
        "chunked,",
        "",
    ] {
        let refused = with(&format!("Transfer-Encoding: {coding}\r\n")).expect_err(coding);
        assert_eq!(refused.status(), 501, "{coding:?}");
    }
    for coding in ["chunked", "Chunked", "  chunked\t"] {
        let head = with(&format!("Transfer-Encoding:{coding}\r\n")).expect(coding);
        assert_eq!(head.framing, Framing::Chunked, "{coding:?}");
    }
}

#[test]
fn http_1_0_has_no_chunks() {
    let refused = parse("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(refused.unwrap_err().status(), 400);
}

#[test]
fn lengths_are_read() {
    for (fields, framing) in [
        ("", Framing::None),
        ("Content-Length: 0\r\n", Framing::Length(0)),
        ("content-length: 007\r\n", Framing::Length(7)),
        ("Content-Length: 18446744073709551615\r\n", Framing::Length(u64::MAX)),
    ] {
        assert_eq!(with(fields).unwrap().framing, framing, "{fields:?}");
    }
}

#[test]
fn a_first_line_is_method_target_and_version_and_nothing_else() {
    for (line, status) in [
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET /", 400),
        ("G@T / HTTP/1.1", 400),
        ("GET /\u{1} HTTP/1.1", 400),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / http/1.1", 400),
        ("GET x HTTP/1.1", 400),
        ("GET ?x HTTP/1.1", 400),
        ("GET /#x HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET http:///x HTTP/1.1", 400),
        ("GET http://:80/x HTTP/1.1", 400),
        ("GET http://h:80:81/x HTTP/1.1", 400),
        ("GET 1http://h/x HTTP/1.1", 400),
        ("GET http://u@h/ HTTP/1.1", 400),
        ("GET ://h/ HTTP/1.1", 400),
        ("GET a:80 HTTP/1.1", 400),
    ] {
        let refused = parse(&format!("{line}\r\nHost: a\r\n\r\n")).expect_err(line);
        assert_eq!(refused.status(), status, "{line:?}: {refused}");
    }
}

#[test]
fn every_form_of_target_has_its_path() {
    for (line, path) in [
        ("GET /a/b?c=d HTTP/1.1", "/a/b"),
        ("GET / HTTP/1.1", "/"),
        ("GET //x HTTP/1.1", "//x"),
        ("GET /ü HTTP/1.1", "/ü"),
        ("GET http://a/b?c HTTP/1.1", "/b"),
        ("GET http://a HTTP/1.1", "/"),
        ("GET https://a?c HTTP/1.1", "/"),
        ("OPTIONS * HTTP/1.1", "*"),
        ("CONNECT a:1 HTTP/1.1", "a:1"),
    ] {
        let head = parse(&format!("{line}\r\nHost: a\r\n\r\n")).expect(line);
        assert_eq!(head.path(), path, "{line}");
    }
}

#[test]
fn a_host_is_wanted_once_and_whole() {
    for (head, ok) in [
        ("GET / HTTP/1.1\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a:\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a:80:81\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: []\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a%2eb\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a%2\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: ä\r\n\r\n", false),
    ] {
        assert_eq!(parse(head).is_ok(), ok, "{head:?}");
    }
}

#[test]
fn the_authority_of_an_absolute_target_is_the_host() {
    let same = "GET http://a.b:80/x HTTP/1.1\r\nHost: A.b:80\r\nX: 1\r\n\r\n";
    assert_eq!(forwarded(same), same);
    assert_eq!(
        forwarded("GET http://a.b/x HTTP/1.1\r\nHost: other\r\nX: 1\r\n\r\n"),
        "GET http://a.b/x HTTP/1.1\r\nX: 1\r\nHost: a.b\r\n\r\n"
    );
    assert_eq!(
        forwarded("GET http://a.b/x HTTP/1.0\r\n\r\n"),
        "GET http://a.b/x HTTP/1.1\r\nHost: a.b\r\n\r\n"
    );
}

#[test]
fn connect_names_a_host_and_a_port_and_has_no_content() {
    for (target, fields, ok) in [
        ("db:5432", "", true),
        ("[::1]:443", "", true),
        ("db:5432", "Content-Length: 0\r\n", true),
        ("db", "", false),
        ("db:", "", false),
        ("db:0", "", false),
        ("db:65536", "", false),
        ("db:1:2", "", false),
        (":5432", "", false),
        ("/db:5432", "", false),
        ("http://db:5432", "", false),
        ("*", "", false),
        ("u@db:5432", "", false),
        ("db:5432", "Content-Length: 3\r\n", false),
        ("db:5432", "Transfer-Encoding: chunked\r\n", false),
    ] {
        let text = format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(parse(&text).is_ok(), ok, "{target} {fields:?}");
    }
    assert!(parse("CONNECT db:5432 HTTP/1.0\r\nHost: a\r\n\r\n").is_err());
}

#[test]
fn what_belongs_to_one_hop_stays_there() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop, host\r\nX-Hop: 1\r\n\
                Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nTE: gzip, trailers\r\nCookie: c\r\n\r\n";
    assert_eq!(forwarded(text), "GET / HTTP/1.1\r\nHost: a\r\nCookie: c\r\nTE: trailers\r\n\r\n");
}

#[test]
fn connections_persist_as_their_version_says() {
    for (version, connection, persists) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        assert_eq!(parse(&text).unwrap().keep_alive, persists, "{text:?}");
    }
}

#[test]
fn an_upgrade_travels_on_unless_it_is_to_http_2() {
    let chat = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let head = parse(chat).unwrap();
    assert!(head.upgrade && head.leaves_http());
    assert_eq!(
        forwarded(chat),
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    );
    for other in [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n",
    ] {
        assert!(!parse(other).unwrap().upgrade, "{other:?}");
        assert_eq!(forwarded(other), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    assert!(!parse(&chat.replace("HTTP/1.1", "HTTP/1.0")).unwrap().upgrade);
}

#[test]
fn callers_cannot_pretend_to_be_a_proxy() {
    let mut head =
        with("Remora-Client-Id: spiffe://x\r\nremora-attempt: 2\r\nRemorax: 1\r\n").unwrap();
    head.fields.strip_ours();
    let mut out = Vec::new();
    head.write(b"", &mut out);
    assert_eq!(out, b"POST /x HTTP/1.1\r\nHost: a\r\nRemorax: 1\r\n\r\n");
}

#[test]
fn too_many_fields_are_refused_as_too_large() {
    let fields: String = (0..MAX_HEADERS).map(|n| format!("x-{n}: 1\r\n")).collect();
    let refused = with(&fields).unwrap_err();
    assert_eq!((refused.status().as_u16(), refused.reason()), (431, Reason::HeaderTooLarge));
    let fields: String = (1..MAX_HEADERS).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert!(with(&fields).is_ok());
}

#[test]
fn empty_lines_before_a_request_are_no_part_of_it() {
    assert_eq!(
        forwarded("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    );
}

#[test]
fn extra_lines_come_last() {
    let mut out = Vec::new();
    with("X: 1\r\n").unwrap().write(b"remora-attempt: 2\r\n", &mut out);
    assert_eq!(out, b"POST /x HTTP/1.1\r\nHost: a\r\nX: 1\r\nremora-attempt: 2\r\n\r\n");
}

proptest! {
    /// Whatever is let through is let through again, means the same and is written the same: the
    /// next parser, also a strict one, finds no other request in it.
    #[test]
    fn what_is_forwarded_is_read_the_same_by_the_next(
        bytes in prop::collection::vec(prop::sample::select(
            &b"GET / HTTP/1.1\r\nHost: a:\t,;=\"Content-Length0Transfer-Encodingchunked\n\r\0\x7f\xff"[..]
        ), 0..60),
        prefix in prop::sample::select(&["", "GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\n"][..]),
    ) {
        let mut text = prefix.as_bytes().to_vec();
        text.extend(bytes);
        text.extend(b"\r\n\r\n");
        let Ok(head) = parse_bytes(&text) else { return Ok(()) };
        let mut once = Vec::new();
        head.write(b"", &mut once);
        let again = parse_bytes(&once).expect("what we write is what we would take");
        prop_assert_eq!(again.framing, head.framing);
        prop_assert_eq!(again.path(), head.path());
        let mut twice = Vec::new();
        again.write(b"", &mut twice);
        prop_assert_eq!(&twice, &once);
        prop_assert!(!once.windows(2).any(|w| w[1] == b'\n' && w[0] != b'\r'));
    }
}
