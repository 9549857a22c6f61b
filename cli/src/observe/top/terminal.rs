//! A terminal that is drawn on: the other screen, keys without Enter, and everything as it was
//! afterwards.

use std::io::{self, Read, Write};

use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::keys::{Key, Parser};

/// Keys that wait.
const WAITING: usize = 64;
/// The other screen, no cursor, no wrapping of long lines.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Asks for the size: where the cursor is once it was sent further than it can go.
const ASK_SIZE: &str = "\x1b[999;999H\x1b[6n";
/// Until a terminal has told its size.
const SIZE: (usize, usize) = (24, 80);

/// The terminal while it is ours; dropped, it is as before.
pub(super) struct Terminal {
    before: Option<Termios>,
    keys: mpsc::Receiver<Key>,
    /// Standard input has ended.
    deaf: bool,
    interrupt: Signal,
    terminate: Signal,
    /// Lines, and characters of a line.
    size: (usize, usize),
}

/// What happened at the terminal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// Something was typed.
    Typed(Key),
    /// Ctrl-C, or somebody wants this program to end.
    End,
}

impl Terminal {
    /// Takes it.
    ///
    /// # Errors
    /// Where signals cannot be watched or nothing can be written.
    pub(super) fn take() -> io::Result<Self> {
        let (interrupt, terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let before = keys_at_once();
        let (tell, keys) = mpsc::channel(WAITING);
        std::thread::spawn(move || {
            let mut parser = Parser::default();
            for byte in io::stdin().lock().bytes().map_while(Result::ok) {
                if let Some(key) = parser.feed(byte)
                    && tell.blocking_send(key).is_err()
                {
                    return;
                }
            }
        });
        let taken = Self { before, keys, deaf: false, interrupt, terminate, size: SIZE };
        write(ENTER)?;
        Ok(taken)
    }

    /// Lines that fit.
    pub(super) fn rows(&self) -> usize {
        self.size.0
    }

    /// Draws over what was there before.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let mut frame = String::from("\x1b[H");
        for (at, line) in lines.iter().take(self.size.0).enumerate() {
            frame += if at == 0 { "" } else { "\r\n" };
            frame += line;
            frame += "\x1b[K";
        }
        frame += "\x1b[J";
        frame += ASK_SIZE;
        write(&frame)
    }

    /// Waits for a key or a signal. Nothing is lost where this is dropped.
    pub(super) async fn happening(&mut self) -> Happening {
        loop {
            let keys = async {
                match self.deaf {
                    true => std::future::pending().await,
                    false => self.keys.recv().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return Happening::End,
                _ = self.terminate.recv() => return Happening::End,
                key = keys => match key {
                    None => self.deaf = true,
                    // One that says what was known is the answer to the last frame.
                    Some(Key::Size { rows, columns }) if (rows, columns) == self.size => {}
                    Some(key) => {
                        if let Key::Size { rows, columns } = key {
                            self.size = (rows.max(1), columns.max(1));
                        }
                        return Happening::Typed(key);
                    }
                },
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = write(LEAVE);
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, before);
        }
    }
}

/// Keys come at once and are not echoed; Ctrl-C still interrupts, Ctrl-Z does not stop, which would
/// leave the other screen on. `None` where standard input is no terminal.
fn keys_at_once() -> Option<Termios> {
    let before = termios::tcgetattr(io::stdin()).ok()?;
    let mut ours = before.clone();
    ours.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
    ours.control_chars[SpecialCharacterIndices::VSUSP as usize] = 0;
    termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &ours).ok()?;
    Some(before)
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
