//! What must hold of every parser whatever bytes it is given. Each target is a function of bytes that
//! panics where something does not hold.
//!
//! libFuzzer looks for such bytes (`tests/fuzz`), and the stored ones of each target
//! (`tests/fuzz/seeds`) are run through the same function by `cargo test`.

pub mod exchange;
pub mod first_bytes;
pub mod http1;
pub mod names;
pub mod relay;
pub mod replay;
pub mod script;
pub mod settings;
pub mod strict;

/// A parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its directory of seeds too.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 15] = [
    Target { name: "annotations", run: settings::annotations },
    Target { name: "authority", run: names::authority },
    Target { name: "client_hello", run: first_bytes::client_hello },
    Target { name: "detect", run: first_bytes::detect },
    Target { name: "grpc_timeout", run: names::grpc_timeout },
    Target { name: "h2_guard", run: first_bytes::h2_guard },
    Target { name: "http1_body", run: http1::body },
    Target { name: "http1_exchange", run: exchange::exchange },
    Target { name: "http1_request", run: http1::request },
    Target { name: "http1_response", run: http1::response },
    Target { name: "inject", run: settings::inject },
    Target { name: "manifest", run: settings::manifest },
    Target { name: "redirect", run: settings::redirect },
    Target { name: "replay", run: replay::replay },
    Target { name: "spiffe_id", run: names::spiffe_id },
];

/// Runs a target by its name.
///
/// # Panics
/// Where something does not hold, or there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(bytes);
}
