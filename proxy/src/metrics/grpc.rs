//! gRPC's status codes, as figures count them.

use http::StatusCode;

/// Codes there are.
pub const CODES: usize = 17;
/// Their names, by number (`google.rpc.Code`).
pub const NAMES: [&str; CODES] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// The client gave up.
pub(super) const CANCELLED: u32 = 1;
/// The transport broke.
pub(super) const UNAVAILABLE: u32 = 14;
const UNKNOWN: usize = 2;

/// Where a code is counted: what is none is UNKNOWN.
pub(super) fn index(code: u32) -> usize {
    usize::try_from(code).ok().filter(|code| *code < CODES).unwrap_or(UNKNOWN)
}

/// Whether a code blames the server, as OpenTelemetry's conventions for spans of servers have it:
/// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
pub(super) fn is_failure(code: usize) -> bool {
    matches!(code, 2 | 4 | 12 | 13 | 14 | 15)
}

/// What a client makes of a response without a code (gRPC's http-grpc-status-mapping).
pub(super) fn of_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => 2,
    }
}
