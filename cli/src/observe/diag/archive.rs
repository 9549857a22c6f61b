//! The archive and its table of contents. Everything passes the redactor on its way in.

use std::io::{self, Write};

use serde_json::Value;

use super::{redact::Redactor, tar::Tar};

/// Folder of everything.
const ROOT: &str = "remora-diag";
/// Largest file; what is longer is cut.
pub(super) const MAX_FILE: usize = 4 << 20;
/// Largest archive.
const MAX_TOTAL: usize = 256 << 20;

/// An archive that grows.
#[derive(Debug)]
pub(super) struct Archive<W> {
    tar: Tar<W>,
    redactor: Redactor,
    total: usize,
    /// Files that are in it: path, bytes, remark.
    inside: Vec<(String, usize, &'static str)>,
    /// What is not, and why.
    left_out: Vec<(String, String)>,
}

impl<W: Write> Archive<W> {
    /// An empty one; `modified` is the time of its files in Unix seconds.
    ///
    /// # Errors
    /// Never: see [`Redactor::new`].
    pub(super) fn new(out: W, modified: u64) -> io::Result<Self> {
        let redactor = Redactor::new().map_err(io::Error::other)?;
        let tar = Tar::new(out, modified);
        Ok(Self { tar, redactor, total: 0, inside: Vec::new(), left_out: Vec::new() })
    }

    /// Adds a text.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn text(&mut self, path: &str, text: &str) -> io::Result<()> {
        let clean = self.redactor.text(text);
        self.add(path, clean)
    }

    /// Adds an object.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn json(&mut self, path: &str, value: Value) -> io::Result<()> {
        let clean = serde_json::to_string_pretty(&self.redactor.json(value))?;
        self.add(path, clean)
    }

    /// Adds an answer: an object where it is one, else a text.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn answer(&mut self, path: &str, body: &[u8]) -> io::Result<()> {
        match serde_json::from_slice(body) {
            Ok(value) => self.json(path, value),
            Err(_) => self.text(path, &String::from_utf8_lossy(body)),
        }
    }

    /// Notes what is not in it.
    pub(super) fn leave_out(&mut self, what: impl Into<String>, why: impl ToString) {
        let why = self.redactor.text(&why.to_string());
        self.left_out.push((what.into(), why));
    }

    /// Writes the table of contents and the end. Gives what was written to, and how many files are
    /// in it and how many are not.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn finish(mut self) -> io::Result<(W, usize, usize)> {
        let counts = (self.inside.len(), self.left_out.len());
        self.tar.file(&format!("{ROOT}/MANIFEST.txt"), self.contents().as_bytes())?;
        Ok((self.tar.finish()?, counts.0, counts.1))
    }

    fn add(&mut self, path: &str, mut content: String) -> io::Result<()> {
        let mut remark = "";
        if content.len() > MAX_FILE {
            let cut = (0..=MAX_FILE).rev().find(|at| content.is_char_boundary(*at)).unwrap_or(0);
            content.truncate(cut);
            content.push_str("\n[cut here]\n");
            remark = "cut";
        }
        if self.total + content.len() > MAX_TOTAL {
            self.leave_out(path, format!("the archive would have more than {MAX_TOTAL} bytes"));
            return Ok(());
        }
        self.total += content.len();
        self.tar.file(&format!("{ROOT}/{path}"), content.as_bytes())?;
        self.inside.push((path.to_owned(), content.len(), remark));
        Ok(())
    }

    fn contents(&self) -> String {
        let mut text = String::from(
            "What is in this archive. Left out of every file: tokens, passwords, keys, cookies and \
             query strings;\nenvironment variables and Secrets were not read. Paths of requests, \
             names and addresses of pods are in it.\n\nbytes     file\n",
        );
        for (path, bytes, remark) in &self.inside {
            let remark = if remark.is_empty() { String::new() } else { format!("  ({remark})") };
            text += &format!("{bytes:>8}  {path}{remark}\n");
        }
        text += "\nWhat is not in it, and why\n";
        if self.left_out.is_empty() {
            text += "Nothing: all that was looked for is in it.\n";
        }
        for (what, why) in &self.left_out {
            text += &format!("{what}: {why}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn archive() -> Archive<Vec<u8>> {
        Archive::new(Vec::new(), 0).unwrap()
    }

    #[test]
    fn planted_secrets_are_nowhere_in_it() {
        const PLANTED: &str = "hunter2hunter2";
        let mut archive = archive();
        archive.text("a.log", &format!("GET /x?key={PLANTED}\ntoken={PLANTED}")).unwrap();
        archive.json("b.json", json!({ "path": format!("/x?{PLANTED}"), "env": PLANTED })).unwrap();
        archive.answer("c", format!("{{\"password\":\"{PLANTED}\"}}").as_bytes()).unwrap();
        archive.answer("d", format!("Authorization: Bearer {PLANTED}").as_bytes()).unwrap();
        archive.leave_out("e", format!("http://jane:{PLANTED}@db/ refused"));
        let (bytes, inside, left_out) = archive.finish().unwrap();
        let all = String::from_utf8_lossy(&bytes);
        assert!(!all.contains(PLANTED), "{all}");
        assert!(all.contains("remora-diag/a.log") && all.contains("GET /x?[left out]"));
        assert_eq!((inside, left_out), (4, 1));
    }

    #[test]
    fn the_manifest_names_what_is_in_it_and_what_is_not() {
        let mut archive = archive();
        archive.text("long.txt", &"x ".repeat(MAX_FILE)).unwrap();
        archive.leave_out("proxies/shop/web-0", "no answer");
        let contents = archive.contents();
        assert!(contents.contains("long.txt  (cut)"), "{contents}");
        assert!(contents.ends_with("\nproxies/shop/web-0: no answer\n"), "{contents}");
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut archive = Archive::new(io::sink(), 0).unwrap();
        archive.total = MAX_TOTAL;
        archive.text("more.txt", "x").unwrap();
        assert!(archive.contents().contains("more.txt: the archive would have more than"));
    }
}
