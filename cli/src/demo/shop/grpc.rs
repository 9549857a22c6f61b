//! gRPC over HTTP/2 in its smallest form: one length-prefixed message each way, the status in the
//! trailers (the gRPC protocol's `PROTOCOL-HTTP2.md`).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use prost::Message;

/// Path of the one method.
pub(crate) const STOCK: &str = "/shop.v1.Inventory/Stock";
/// Media type of gRPC.
pub(crate) const CONTENT_TYPE: &str = "application/grpc";
/// Largest message taken.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;
/// Flag and length before each message.
const PREFIX: usize = 5;

/// Asks how many of an article are there.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StockRequest {
    /// Article.
    #[prost(string, tag = "1")]
    pub(crate) article: String,
}

/// How many.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StockReply {
    /// Pieces on the shelf.
    #[prost(uint32, tag = "1")]
    pub(crate) pieces: u32,
    /// Pod that counted them.
    #[prost(string, tag = "2")]
    pub(crate) pod: String,
}

/// Status codes used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    InvalidArgument = 3,
    Unimplemented = 12,
    Unavailable = 14,
}

/// A message that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the message is cut off after {0} bytes")]
    CutOff(usize),
    #[error("the message is compressed, which was not negotiated")]
    Compressed,
    #[error("{0} bytes follow the message of a unary call")]
    Trailing(usize),
    #[error("the message does not decode: {0}")]
    Decode(String),
}

/// One message with its prefix.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("invariant: the shop's messages are tiny"));
    out.put_slice(&message.encode_to_vec());
    out.freeze()
}

/// The one message in a unary body.
pub(crate) fn unframe<M: Message + Default>(mut body: Bytes) -> Result<M, FrameError> {
    if body.len() < PREFIX {
        return Err(FrameError::CutOff(body.len()));
    }
    if body.get_u8() != 0 {
        return Err(FrameError::Compressed);
    }
    let length = body.get_u32() as usize;
    if body.len() < length {
        return Err(FrameError::CutOff(PREFIX + body.len()));
    }
    let message = body.split_to(length);
    if !body.is_empty() {
        return Err(FrameError::Trailing(body.len()));
    }
    M::decode(message).map_err(|e| FrameError::Decode(e.to_string()))
}

/// The status in trailers, or in the head of a trailers-only answer.
pub(crate) fn status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_frame() {
        let reply = StockReply { pieces: 3, pod: "inventory-0".into() };
        assert_eq!(unframe::<StockReply>(frame(&reply)), Ok(reply));
    }

    #[test]
    fn bad_frames_are_refused() {
        let good = frame(&StockRequest { article: "tea".into() });
        assert_eq!(unframe::<StockRequest>(good.slice(..7)), Err(FrameError::CutOff(7)));
        assert_eq!(unframe::<StockRequest>(good.slice(..3)), Err(FrameError::CutOff(3)));
        let two = Bytes::from([&good[..], &good[..]].concat());
        assert_eq!(unframe::<StockRequest>(two), Err(FrameError::Trailing(good.len())));
        let mut compressed = good.to_vec();
        compressed[0] = 1;
        assert_eq!(unframe::<StockRequest>(compressed.into()), Err(FrameError::Compressed));
    }
}
