//! Commands that show what a running mesh does: `top`, `endpoints`, `routes`, `tap`, `why`,
//! `why-endpoint`, `diag`. They ask the proxies themselves, on this machine or in a cluster; nothing
//! is kept anywhere.
//!
//! - [`place`] which mesh, and whose proxies; `mesh/` how they are found and asked;
//! - `answers` what they say; `merge` what several say of the same;
//! - `table` how it is shown; `wish` a Service as people name it;
//! - one module for each command.

mod answers;
pub mod diag;
pub mod endpoints;
mod error;
mod merge;
mod mesh;
pub mod place;
pub mod routes;
mod table;
pub mod tap;
#[cfg(test)]
mod testing;
pub mod top;
pub mod why;
pub mod why_endpoint;
mod wish;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use serde::Serialize;

use self::{
    error::Error,
    mesh::{Local, Mesh, Proxies, Silent},
    place::Place,
    table::Colours,
};

/// Proxies without an answer that are named; the rest is counted.
const NAMED: usize = 10;

/// What all of these commands have in common in `--help`.
const EXIT_STATUS: &str = "\
Without a flag that says otherwise, the proxies of the mesh that runs on this machine are asked, else those of the
cluster that kubectl would talk to. A proxy that does not answer is named, and does not keep the others from being shown.

Exit status: 0 where it could be said, 1 where not, 2 where the command line cannot be used.";

/// Finds the mesh, says which one it is, and does the work. The mesh of this machine is entered
/// before there is a second thread, as the kernel demands.
fn drive(place: &Place, work: impl AsyncFnOnce(&Mesh) -> Result<ExitCode, Error>) -> ExitCode {
    let driven = enter(place).and_then(|local| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(Error::Start)?.block_on(async {
            let mesh = match local {
                Some(local) => Mesh::Local(local),
                None => Mesh::in_kubernetes(place).await?,
            };
            Box::pin(work(&mesh)).await
        })
    });
    driven.unwrap_or_else(|error| {
        eprintln!("remora: {error}");
        ExitCode::FAILURE
    })
}

fn enter(place: &Place) -> Result<Option<Local>, Error> {
    if place.asks_for_kubernetes() {
        return Ok(None);
    }
    Ok(Local::enter(place.name.as_deref())?)
}

/// Who was asked and who did not answer, for the commands that print once.
#[derive(Debug, Serialize)]
struct Asked<'a> {
    /// In words.
    mesh: String,
    /// Proxies that answered.
    proxies: usize,
    unreachable: &'a [Silent],
    /// Proxies that were not asked, since they are too many.
    left_out: usize,
}

impl<'a> Asked<'a> {
    fn of(mesh: &Mesh, proxies: &Proxies, silent: &'a [Silent]) -> Self {
        Self {
            mesh: mesh.name(),
            proxies: proxies.members.len() - silent.len(),
            unreachable: silent,
            left_out: proxies.left_out,
        }
    }

    /// Lines for people.
    fn lines(&self) -> Vec<String> {
        let all = self.proxies + self.unreachable.len();
        let mut lines = vec![format!("{} of {all} proxies answer in {}", self.proxies, self.mesh)];
        let named = self.unreachable.iter().take(NAMED);
        lines.extend(
            named.map(|silent| format!("no answer from {}: {}", silent.member, silent.why)),
        );
        if self.unreachable.len() > NAMED {
            lines.push(format!("and none from {} others", self.unreachable.len() - NAMED));
        }
        if self.left_out > 0 {
            lines.push(format!(
                "{} proxies more were not asked; choose with --namespace or --pod",
                self.left_out
            ));
        }
        lines
    }

    /// Says it beside the output proper.
    fn say(&self) {
        for line in self.lines() {
            eprintln!("remora: {line}");
        }
    }
}

/// Whether standard output is a terminal that is to have colours.
fn colours() -> Colours {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    Colours(io::stdout().is_terminal() && !plain && !dumb)
}

/// Prints; whoever has seen enough of it (`| head`) is no trouble.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Print(error)),
        _ => Ok(()),
    }
}

/// Prints an object for programs.
fn print_json(value: &impl Serialize) -> Result<(), Error> {
    print(|out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        writeln!(out)
    })
}

/// A value for the query of a URL (RFC 3986 §2.1).
fn query_value(text: &str) -> String {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~/:".contains(&b);
    text.bytes()
        .map(|b| if unreserved(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use mesh::{Member, Unanswered, Way};

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(query_value("/a b&c=ä"), "/a%20b%26c%3D%C3%A4");
    }

    #[test]
    fn who_did_not_answer_is_named_up_to_a_bound() {
        let silent = |n: usize| Silent {
            member: Member {
                namespace: "shop".to_owned(),
                pod: format!("web-{n}"),
                way: Way::Network { file: PathBuf::new(), address: ([127, 0, 0, 1], 4191).into() },
            },
            why: Unanswered::Unreached("refused".to_owned()),
        };
        let silent: Vec<Silent> = (0..NAMED + 2).map(silent).collect();
        let asked =
            Asked { mesh: "here".to_owned(), proxies: 1, unreachable: &silent, left_out: 3 };
        let lines = asked.lines();
        assert_eq!(lines[0], "1 of 13 proxies answer in here");
        assert_eq!(lines[1], "no answer from shop/web-0: refused");
        assert_eq!(lines[NAMED + 1], "and none from 2 others");
        assert_eq!(lines.len(), NAMED + 3);
        let json = serde_json::to_value(&asked).unwrap();
        assert_eq!(json["unreachable"][0]["pod"], "web-0");
        assert_eq!(json["unreachable"][0]["why"], "refused");
    }
}
