//! What people see: one line at a time on the terminal, and everything in log files.

use std::{
    fs::{File, OpenOptions},
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Longest line that is passed on in one piece.
const LINE: u64 = 16 * 1024;
/// A log file that has grown to this is put aside as `.1`, replacing the one before.
const LARGEST_LOG: u64 = 16 * 1024 * 1024;
/// Colours of the prefixes (ANSI), told apart on dark and light ground.
const COLOURS: [u8; 6] = [36, 32, 33, 35, 34, 31];

/// The terminal.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    quiet: bool,
    colours: bool,
}

/// A log file that several streams write to.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
    open: Arc<Mutex<Option<(File, u64)>>>,
}

impl Console {
    /// A quiet one shows what `up` itself has to say, but not the containers' output.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self { quiet, colours: std::io::stdout().is_terminal() }
    }

    /// Says something of `up` itself.
    pub fn say(&self, line: &str) {
        // A terminal that is gone is no reason to end.
        let _ = writeln!(std::io::stderr(), "remora: {line}");
    }

    fn output(&self, prefix: &str, line: &str) {
        if self.quiet {
            return;
        }
        let mut out = std::io::stdout().lock();
        let _ = if self.colours {
            let sum: usize = prefix.bytes().map(usize::from).sum();
            let colour = COLOURS[sum % COLOURS.len()];
            writeln!(out, "\x1b[{colour}m{prefix}\x1b[0m │ {line}")
        } else {
            writeln!(out, "{prefix} │ {line}")
        };
    }
}

impl Log {
    /// A log at that path, made with the first line.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), open: Arc::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, line: &str) {
        let mut open = self.open.lock();
        if open.as_ref().is_some_and(|(_, size)| *size > LARGEST_LOG) {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".1");
            let _ = std::fs::rename(&self.path, aside);
            *open = None;
        }
        if open.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&self.path);
            *open = file.ok().map(|file| {
                let size = file.metadata().map_or(0, |meta| meta.len());
                (file, size)
            });
        }
        if let Some((file, size)) = open.as_mut() {
            // A full disk must not end the container.
            let _ = writeln!(file, "{line}");
            *size += line.len() as u64 + 1;
        }
    }
}

/// Copies a stream line by line into the log, and to the terminal where there is a prefix,
/// until it ends.
pub async fn pump(stream: impl AsyncRead + Unpin, log: Log, terminal: Option<(Console, String)>) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        log.write(text);
        if let Some((console, prefix)) = &terminal {
            console.output(prefix, text);
        }
    }
}
