//! HTTP/2 with prior knowledge through both proxies.

mod bodies;
mod connect;
mod fields;
mod goaway;
mod refused;
mod resets;
mod windows;
