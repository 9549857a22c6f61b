//! Network namespaces of other processes.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::Path,
};

use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::socket::SockaddrLike,
};

/// Inode of the network namespace that the calling thread lives in.
pub(super) fn own(proc: &Path) -> io::Result<u64> {
    Ok(fs::metadata(proc.join("thread-self/ns/net"))?.ino())
}

/// Opens the network namespace with this inode by way of any process that lives in it.
pub(super) fn open(proc: &Path, inode: u64) -> io::Result<Option<File>> {
    for entry in fs::read_dir(proc)? {
        let Ok(entry) = entry else { continue };
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // Processes come and go while we look; one that went is not the one we look for.
        let Ok(file) = File::open(entry.path().join("ns/net")) else { continue };
        if file.metadata().is_ok_and(|meta| meta.ino() == inode) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Runs something on a thread of its own inside a network namespace. The thread ends with it: one
/// that has changed its namespace must not be used for anything else.
pub(super) fn inside<T: Send + 'static>(
    namespace: File,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        Ok(work())
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

/// Addresses of the calling thread's network namespace.
pub(super) fn addresses() -> io::Result<Vec<IpAddr>> {
    let all = getifaddrs()?.filter_map(|interface| interface.address);
    Ok(all
        .filter_map(|address| match address.family()? {
            nix::sys::socket::AddressFamily::Inet => {
                Some(IpAddr::V4(address.as_sockaddr_in()?.ip()))
            }
            nix::sys::socket::AddressFamily::Inet6 => {
                Some(IpAddr::V6(address.as_sockaddr_in6()?.ip()))
            }
            _ => None,
        })
        .collect())
}
