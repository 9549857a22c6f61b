//! A tar archive (POSIX.1-1988 ustar) of plain files, written as it grows.

use std::io::{self, Write};

/// Everything is in blocks of this size.
const BLOCK: usize = 512;
/// Fields of the header for a path: its end, and what is before it.
const NAME: usize = 100;
const PREFIX: usize = 155;

/// Writes files one after the other.
#[derive(Debug)]
pub(super) struct Tar<W> {
    out: W,
    /// Unix seconds that all files are said to be of.
    modified: u64,
}

impl<W: Write> Tar<W> {
    pub(super) fn new(out: W, modified: u64) -> Self {
        Self { out, modified }
    }

    /// Appends a file that its owner alone may read.
    ///
    /// # Errors
    /// Where it cannot be written, or its path is longer than the format allows.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.out.write_all(&header(path, content.len() as u64, self.modified)?)?;
        self.out.write_all(content)?;
        let rest = content.len().next_multiple_of(BLOCK) - content.len();
        self.out.write_all(&[0; BLOCK][..rest])
    }

    /// Writes the end.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn header(path: &str, length: u64, modified: u64) -> io::Result<[u8; BLOCK]> {
    let (prefix, name) = split(path).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidFilename, format!("{path} is too long for an archive"))
    })?;
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    // Owner and group are nobody's business.
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{length:011o}\0").as_bytes());
    put(136, format!("{modified:011o}\0").as_bytes());
    // The sum is made as if its own field were blank.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

/// A path as prefix and name, cut at a slash where it does not fit in one.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= NAME {
        return Some(("", path));
    }
    let cut = path.match_indices('/').map(|(at, _)| at).find(|at| path.len() - at - 1 <= NAME)?;
    (cut <= PREFIX).then(|| (&path[..cut], &path[cut + 1..]))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_written_is_read_by_tar() {
        let long = format!("a/{}/{}", "b".repeat(120), "c.txt");
        let mut tar = Tar::new(Vec::new(), 1_795_220_669);
        tar.file("a/empty", b"").unwrap();
        tar.file(&long, &[b'x'; 513]).unwrap();
        let bytes = tar.finish().unwrap();
        assert_eq!(bytes.len(), BLOCK * (1 + 1 + 2 + 2));
        let dir = tempfile::tempdir().unwrap();
        let program = Command::new("tar")
            .args(["-x", "-f", "-", "-C"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .spawn();
        let Ok(mut program) = program else {
            eprintln!("skipped: there is no tar");
            return;
        };
        program.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(program.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("a/empty")).unwrap(), b"");
        assert_eq!(std::fs::read(dir.path().join(&long)).unwrap(), [b'x'; 513]);
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        assert!(header(&"x".repeat(101), 0, 0).is_err());
        assert!(header(&format!("{}/x", "y".repeat(156)), 0, 0).is_err());
        assert!(header(&format!("{}/x", "y".repeat(155)), 0, 0).is_ok());
    }
}
