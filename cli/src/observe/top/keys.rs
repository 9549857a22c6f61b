//! What is typed, and what the terminal says of its size.

/// Bytes of a terminal's answer that are kept.
const MAX_SEQUENCE: usize = 32;

/// Something that happened at the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// A printable character.
    Char(char),
    /// Enter.
    Enter,
    /// Backspace.
    Backspace,
    /// The answer to a question after the cursor in the far corner.
    Size {
        /// Lines.
        rows: usize,
        /// Characters of a line.
        columns: usize,
    },
}

/// Reads keys from the terminal's bytes (ECMA-48 control sequences).
#[derive(Debug, Default)]
pub(super) struct Parser {
    sequence: Option<Vec<u8>>,
}

impl Parser {
    /// Takes the next byte; a key where it completes one.
    pub(super) fn feed(&mut self, byte: u8) -> Option<Key> {
        if let Some(sequence) = &mut self.sequence {
            if sequence.is_empty() && byte != b'[' {
                // Not the begin of a sequence: the escape key, which does nothing here.
                self.sequence = None;
                return self.feed(byte);
            }
            sequence.push(byte);
            let ends = sequence.len() > 1 && (0x40..=0x7e).contains(&byte);
            if ends || sequence.len() >= MAX_SEQUENCE {
                let sequence = self.sequence.take()?;
                return position(&sequence);
            }
            return None;
        }
        match byte {
            0x1b => {
                self.sequence = Some(Vec::new());
                None
            }
            b'\r' | b'\n' => Some(Key::Enter),
            0x7f | 0x08 => Some(Key::Backspace),
            printable @ 0x20..0x7f => Some(Key::Char(char::from(printable))),
            _ => None,
        }
    }
}

/// `[rows;columnsR`, a cursor position report.
fn position(sequence: &[u8]) -> Option<Key> {
    let text = std::str::from_utf8(sequence).ok()?;
    let (rows, columns) = text.strip_prefix('[')?.strip_suffix('R')?.split_once(';')?;
    Some(Key::Size { rows: rows.parse().ok()?, columns: columns.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut parser = Parser::default();
        bytes.iter().filter_map(|byte| parser.feed(*byte)).collect()
    }

    #[test]
    fn keys_and_the_terminals_size_are_told_apart() {
        assert_eq!(
            keys(b"q/a\r\x7f"),
            [Key::Char('q'), Key::Char('/'), Key::Char('a'), Key::Enter, Key::Backspace]
        );
        assert_eq!(
            keys(b"s\x1b[40;132Rp"),
            [Key::Char('s'), Key::Size { rows: 40, columns: 132 }, Key::Char('p')]
        );
    }

    #[test]
    fn arrows_and_nonsense_do_nothing() {
        assert_eq!(keys(b"\x1b[A\x1b[1;5C\x1bq"), [Key::Char('q')]);
        assert_eq!(keys(b"\x1b[;R\x01\xff"), []);
        let mut endless = b"\x1b[".to_vec();
        endless.extend([b'1'; 100]);
        assert!(keys(&endless).iter().all(|key| *key == Key::Char('1')));
    }
}
