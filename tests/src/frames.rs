//! HTTP/2 frame by frame, for what no library sends.

use std::{io, net::SocketAddr};

use crate::wire::{App, Wire};

/// Kinds of frames (RFC 9113 §6).
#[allow(missing_docs, reason = "their names are the specification's")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

/// Flag of HEADERS and DATA: nothing follows.
pub const END_STREAM: u8 = 1;
/// Flag of HEADERS: the block is complete.
pub const END_HEADERS: u8 = 4;
/// Flag of SETTINGS and PING: an answer.
const ACK: u8 = 1;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One end of a connection.
#[derive(Debug)]
pub struct Frames(Wire);

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// Depends on the kind.
    pub flags: u8,
    /// 0: of the connection.
    pub stream: u32,
    /// Depends on the kind.
    pub payload: Vec<u8>,
}

impl Frames {
    /// Connects as a client.
    pub async fn dial(addr: SocketAddr) -> Self {
        let mut wire = Wire::dial(addr).await;
        wire.send(PREFACE).await;
        let mut this = Self(wire);
        this.send(kind::SETTINGS, 0, 0, &[]).await;
        this
    }

    /// Accepts as a server.
    ///
    /// # Panics
    /// Where the caller does not speak HTTP/2.
    pub async fn accept(app: &App) -> Self {
        let mut wire = app.accept().await;
        assert_eq!(wire.exactly(PREFACE.len()).await, PREFACE);
        let mut this = Self(wire);
        this.send(kind::SETTINGS, 0, 0, &[]).await;
        this
    }

    /// Sends one frame, whatever is in it.
    ///
    /// # Panics
    /// Where the payload is longer than a frame can be.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.0.send(frame(kind, flags, stream, payload)).await;
    }

    /// Waits for the peer's SETTINGS and answers them, and then sends a head and a body in one: a peer
    /// that closes because of the former has taken the latter too.
    ///
    /// # Panics
    /// Where the connection does not take it.
    pub async fn ask(&mut self, head: &[u8], body: &[u8]) {
        while self.any().await.expect("settings").kind != kind::SETTINGS {}
        self.send(kind::SETTINGS, ACK, 0, &[]).await;
        let head = frame(kind::HEADERS, END_HEADERS, 1, head);
        self.0.send([head, frame(kind::DATA, END_STREAM, 1, body)].concat()).await;
    }

    /// The next frame that is about a stream, or GOAWAY. SETTINGS and PING are answered, and windows
    /// passed over.
    ///
    /// # Errors
    /// Where the connection ends.
    pub async fn next(&mut self) -> io::Result<Frame> {
        loop {
            let frame = self.any().await?;
            match frame.kind {
                kind::SETTINGS | kind::PING if frame.flags & ACK != 0 => {}
                kind::SETTINGS => self.send(kind::SETTINGS, ACK, 0, &[]).await,
                kind::PING => self.send(kind::PING, ACK, 0, &frame.payload).await,
                kind::WINDOW_UPDATE => {}
                _ => return Ok(frame),
            }
        }
    }

    async fn any(&mut self) -> io::Result<Frame> {
        let head = self.0.try_exactly(9).await?;
        let [a, b, c, kind, flags, s @ ..] = &head[..] else { unreachable!("nine bytes") };
        let len = u32::from_be_bytes([0, *a, *b, *c]);
        let stream = u32::from_be_bytes([s[0], s[1], s[2], s[3]]);
        let payload = self.0.try_exactly(len as usize).await?;
        Ok(Frame { kind: *kind, flags: *flags, stream, payload })
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.0.reset();
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

impl Frame {
    /// Code of RST_STREAM.
    ///
    /// # Panics
    /// Where it is another frame.
    #[must_use]
    pub fn code(&self) -> u32 {
        assert_eq!(self.kind, kind::RST_STREAM, "{self:?}");
        u32::from_be_bytes(self.payload[..4].try_into().expect("four bytes"))
    }

    /// Whether it is the head of a response with this status, one of those that have an index of their
    /// own (RFC 7541 appendix A).
    #[must_use]
    pub fn is_status(&self, status: u16) -> bool {
        const INDEXED: [(u16, u8); 4] = [(200, 0x88), (204, 0x89), (304, 0x8b), (400, 0x8c)];
        let first = INDEXED.iter().find(|(known, _)| *known == status).map(|(_, index)| index);
        self.kind == kind::HEADERS && self.payload.first() == first
    }
}

/// A block of fields, each a literal (RFC 7541 §6.2.2).
///
/// # Panics
/// Where one is longer than 16 KiB.
#[must_use]
pub fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name.as_bytes(), value] {
            // An integer with a prefix of seven bits (§5.1).
            match u8::try_from(text.len()) {
                Ok(len) if len < 127 => out.push(len),
                _ => {
                    let rest = text.len() - 127;
                    assert!(rest < 1 << 14);
                    out.extend([127, (rest & 127) as u8 | 128, (rest >> 7) as u8]);
                }
            }
            out.extend_from_slice(text);
        }
    }
    out
}
