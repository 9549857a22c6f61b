//! What is on the wire: a packet capture on a pod's link to the node.

use std::{
    io::Read,
    process::{Child, Stdio},
};

use super::mesh::Up;

/// Raw frames of eth0 to standard output until standard input ends.
const CAPTURE: &str = "
import select, socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(('eth0', 0))
link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
out = sys.stdout.buffer
out.write(b'!'); out.flush()
while True:
    ready, _, _ = select.select([link, sys.stdin], [], [])
    if link in ready:
        out.write(link.recv(65536))
    elif sys.stdin in ready:
        break
";

/// A capture that is running.
pub(super) struct Capture(Child);

impl Capture {
    /// Begins, and returns once packets are seen.
    pub(super) fn on(up: &Up, pod: &str) -> Self {
        let mut command = up.command(pod, &["/usr/bin/python3", "-c", CAPTURE]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("exec starts");
        let mut begun = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut begun).expect("the capture begins");
        Self(child)
    }

    /// Ends it; every byte that went over the link.
    pub(super) fn bytes(mut self) -> Vec<u8> {
        // Read while it drains what the kernel still holds, so that it cannot block.
        drop(self.0.stdin.take());
        let mut bytes = Vec::new();
        self.0.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        let _ = self.0.wait();
        bytes
    }
}

/// Whether these bytes contain those.
pub(super) fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
