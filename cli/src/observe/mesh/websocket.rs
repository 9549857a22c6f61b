//! The part of WebSocket (RFC 6455) that a port-forward needs: frames of a client, without
//! extensions.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use k8s_openapi::ByteString;
use serde_json::Value;

/// Largest frame that is taken; kubelets send at most 32 KiB at a time.
const MAX_PAYLOAD: u64 = 1 << 20;
/// What both sides append to the key (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a frame is (RFC 6455 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The rest of the message before.
    Continuation,
    /// A message of text.
    Text,
    /// A message of bytes.
    Binary,
    /// The end.
    Close,
    /// To be answered with a pong of the same payload.
    Ping,
    /// The answer.
    Pong,
}

impl Kind {
    fn of(opcode: u8) -> Option<Self> {
        Some(match opcode {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    fn opcode(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }
}

/// One frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) payload: Bytes,
}

/// Why the stream is given up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("a WebSocket frame with unknown opcode {0:#x} or extension bits")]
    Opcode(u8),
    #[error("a WebSocket frame of {0} bytes")]
    Large(u64),
    #[error("a masked WebSocket frame from a server")]
    Masked,
}

/// Takes the next frame from what has arrived; `None` where it is not all there yet.
pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some(&[first, second]) = buffer.first_chunk::<2>() else { return Ok(None) };
    let kind = Kind::of(first & 0x0f).filter(|_| first & 0x70 == 0);
    let kind = kind.ok_or(Malformed::Opcode(first & 0x7f))?;
    if second & 0x80 != 0 {
        return Err(Malformed::Masked);
    }
    let mut rest = &buffer[2..];
    let length = match second {
        126 if rest.len() < 2 => return Ok(None),
        126 => u64::from(rest.get_u16()),
        127 if rest.len() < 8 => return Ok(None),
        127 => rest.get_u64(),
        short => u64::from(short),
    };
    if length > MAX_PAYLOAD {
        return Err(Malformed::Large(length));
    }
    let (head, length) = (buffer.len() - rest.len(), length as usize);
    if rest.len() < length {
        return Ok(None);
    }
    buffer.advance(head);
    Ok(Some(Frame { kind, payload: buffer.split_to(length).freeze() }))
}

/// Appends a whole message in one frame, masked as a client's must be.
pub(super) fn encode(kind: Kind, payload: &[&[u8]], mask: [u8; 4], out: &mut BytesMut) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    out.put_u8(0x80 | kind.opcode());
    match length {
        0..126 => out.put_u8(0x80 | length as u8),
        126..=0xffff => {
            out.put_u8(0x80 | 126);
            out.put_u16(length as u16);
        }
        _ => {
            out.put_u8(0x80 | 127);
            out.put_u64(length as u64);
        }
    }
    out.put_slice(&mask);
    let bytes = payload.iter().copied().flatten();
    out.extend(bytes.zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// A key for the handshake, of 16 random bytes.
pub(super) fn key(random: [u8; 16]) -> String {
    base64(&random)
}

/// What a server answers to that key.
pub(super) fn accept(key: &str) -> String {
    base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()).as_ref())
}

/// Base64 as Kubernetes' own objects have it, which is the one of the handshake.
fn base64(bytes: &[u8]) -> String {
    match serde_json::to_value(ByteString(bytes.to_vec())) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_that_of_the_standards_example() {
        // RFC 6455 §1.3.
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(key(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
    }

    #[test]
    fn a_frame_is_taken_when_all_of_it_is_there() {
        // RFC 6455 §5.7: a single-frame unmasked text message, and a ping behind it.
        let whole = b"\x81\x05Hello\x89\x00";
        let mut buffer = BytesMut::new();
        for byte in &whole[..6] {
            buffer.put_u8(*byte);
            assert_eq!(decode(&mut buffer), Ok(None));
        }
        buffer.extend_from_slice(&whole[6..]);
        let frame = Frame { kind: Kind::Text, payload: Bytes::from_static(b"Hello") };
        assert_eq!(decode(&mut buffer), Ok(Some(frame)));
        let ping = Frame { kind: Kind::Ping, payload: Bytes::new() };
        assert_eq!(decode(&mut buffer), Ok(Some(ping)));
        assert_eq!(decode(&mut buffer), Ok(None));
    }

    #[test]
    fn long_frames_have_long_lengths_and_too_long_ones_are_refused_before_they_are_there() {
        let mut buffer = BytesMut::from(&b"\x82\x7e\x01\x00"[..]);
        buffer.extend_from_slice(&[7; 256]);
        assert_eq!(decode(&mut buffer).unwrap().unwrap().payload.len(), 256);
        let mut buffer = BytesMut::from(&b"\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00"[..]);
        assert_eq!(decode(&mut buffer), Err(Malformed::Large(1 << 32)));
    }

    #[test]
    fn what_no_server_may_send_is_refused() {
        let decode = |bytes: &[u8]| decode(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(decode(b"\x82\x80"), Malformed::Masked);
        assert_eq!(decode(b"\x83\x00"), Malformed::Opcode(3));
        assert_eq!(decode(b"\xc2\x00"), Malformed::Opcode(0x42));
    }

    #[test]
    fn a_clients_frame_is_masked() {
        let mut out = BytesMut::new();
        // RFC 6455 §5.7.
        encode(Kind::Text, &[b"Hel", b"lo"], [0x37, 0xfa, 0x21, 0x3d], &mut out);
        assert_eq!(&out[..], b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        out.clear();
        encode(Kind::Binary, &[&[0; 65536]], [1, 2, 3, 4], &mut out);
        assert_eq!(&out[..10], b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00");
        assert_eq!(out.len(), 2 + 8 + 4 + 65536);
    }
}
