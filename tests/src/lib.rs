//! Harness for tests of the data path: a control plane and sidecars in this process, over real
//! sockets and real TLS on loopback, with back ends that answer byte for byte.
//!
//! - [`mesh`] manifests, tokens, the control plane, and [`mesh::Pair`], the usual two sidecars;
//! - [`sidecar`] one proxy on threads of its own, and what its admin endpoint shows;
//! - [`process`] one as a process, and what it takes of the machine;
//! - [`wire`] both ends of a connection, byte for byte;
//! - [`origin`] HTTP servers and clients that count;
//! - [`grpc`] messages and endings of gRPC;
//! - [`streams`] HTTP/2 stream by stream, [`frames`] frame by frame;
//! - [`collector`] a collector of traces;
//! - [`load`] clients that ask without a break, every request counted;
//! - [`wait`] waiting for events within a bound;
//! - [`apiserver`] a double of the Kubernetes API;
//! - [`browser`] a headless Chromium, where the machine has one;
//! - [`address`] loopback addresses that no other mesh on this machine uses.
//!
//! No interception takes place here: sidecars have explicit listeners. Tests with redirection and
//! real processes go through `remora up`.

pub mod address;
pub mod apiserver;
pub mod browser;
pub mod collector;
pub mod frames;
pub mod fuzz;
pub mod grpc;
pub mod load;
pub mod mesh;
pub mod origin;
pub mod process;
pub mod sidecar;
pub mod streams;
pub mod wait;
pub mod wire;
