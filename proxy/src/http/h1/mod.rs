//! HTTP/1.0 and HTTP/1.1, as a relay speaks them.
//!
//! A head is forwarded as the bytes it came in, less what belongs to one hop: order, case and
//! repetition of its fields stay. Everything happens on the task of the client's connection, which
//! holds both ends; nothing is handed to another task, and an idle connection holds no buffer.
//!
//! A message goes through the files like this:
//!
//! 1. [`wire::Wire`] is a connection with what was read ahead and what is still to be written. It
//!    reads up to the end of a head, which [`scan`] finds.
//! 2. [`request`] and [`response`] read the head ([`head::Head`]) and say how long the body is. A
//!    request that two parsers could understand differently is refused there.
//! 3. [`exchange::ask`] sends the request over an upstream connection and waits for the response's
//!    head; interim responses go to the client as they come.
//! 4. [`exchange::answer`] sends the response to the client. Bodies are moved by
//!    [`transfer::Transfer`]: [`body::Decoder`] finds their end, [`body::Encoder`] frames them anew.
//! 5. [`server::serve`] goes on with the next request of the connection, [`pool::Pool`] keeps the
//!    upstream's for the next.
//!
//! The rules are those of RFC 9112; each is named where it is applied.

pub mod body;
mod connection;
mod edit;
pub mod exchange;
pub mod head;
pub mod pool;
pub mod request;
pub mod response;
mod scan;
pub mod server;
mod timer;
pub mod transfer;
pub mod wire;
