//! Sockets: listening, the original destination, looking at first bytes, dialling, copying.

pub mod admission;
pub mod client_hello;
pub mod connect;
pub mod copy;
pub mod detect;
pub mod listener;
pub mod overheard;
pub mod prefixed;
pub mod scratch;
