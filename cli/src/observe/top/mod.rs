//! `remora top`: what the mesh does now, redrawn every second.
//!
//! `keys` what is typed, `terminal` where it is drawn, `view` what is drawn.

mod keys;
mod terminal;
mod view;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use tokio::time::{Instant, interval};

use self::{
    terminal::{Happening, Terminal},
    view::{Sort, View},
};
use super::{
    Asked, EXIT_STATUS, Proxies, colours, drive,
    endpoints::{Shown, ask},
    error::Error,
    merge::{self, Service, Span},
    mesh::{Answers, Asker, Member, Mesh, Silent, each},
    place::Place,
    print, print_json,
    table::Colours,
};

/// Between two frames.
const FRAME: Duration = Duration::from_secs(1);
/// How often it is looked which proxies there are.
const LIST: Duration = Duration::from_secs(5);
/// A proxy that takes longer is left out of the frame.
const PATIENCE: Duration = Duration::from_secs(2);

/// `remora top`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// Sort by this at first; keys change it
    #[arg(long, value_enum, default_value = "rps")]
    sort: Sort,
    /// Show only what has this in the name of the Service or pod, or in its address
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Print once and end; chosen by itself where the output is no terminal
    #[arg(long)]
    once: bool,
    /// Print {mesh, proxies, unreachable, left_out, services} once
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Runs it: status 0 where there was something to show.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let once = args.once || args.json || !io::stdout().is_terminal();
    let view =
        View { sort: args.sort, filter: args.filter.clone().unwrap_or_default(), typing: false };
    drive(&args.place, async |mesh| {
        let mut watched = Watched::new(mesh, &args.place).await?;
        if once {
            snapshot(&mut watched, &view, args.json).await?;
        } else {
            live(watched, view).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The proxies that are asked again and again, each on its own connection.
struct Watched<'m> {
    mesh: &'m Mesh,
    place: &'m Place,
    proxies: Proxies,
    askers: Vec<Asker<'m>>,
    listed: Instant,
}

/// What they said last.
#[derive(Default)]
struct Frame {
    services: Vec<Service>,
    silent: Vec<Silent>,
    /// Why the proxies could not be listed.
    trouble: Option<String>,
}

impl<'m> Watched<'m> {
    async fn new(mesh: &'m Mesh, place: &'m Place) -> Result<Self, Error> {
        let proxies = mesh.proxies(place).await?;
        let askers = mesh.askers(&proxies.members);
        let askers = askers.into_iter().map(|asker| asker.patient(PATIENCE)).collect();
        Ok(Self { mesh, place, proxies, askers, listed: Instant::now() })
    }

    /// Asks all of them.
    async fn frame(&mut self) -> Frame {
        let trouble = match self.listed.elapsed() >= LIST {
            true => self.list().await.err().map(|error| error.to_string()),
            false => None,
        };
        let Answers { given, silent } = each(&mut self.askers, ask).await;
        let given = given.iter().map(|(_, (endpoints, routes))| (endpoints, routes.as_ref()));
        Frame { services: merge::services(given, Span::TenSeconds), silent, trouble }
    }

    /// Follows which proxies there are; connections to those that stay are kept.
    async fn list(&mut self) -> Result<(), Error> {
        self.listed = Instant::now();
        self.proxies = self.mesh.proxies(self.place).await?;
        let mut open: BTreeMap<Member, Asker<'m>> =
            self.askers.drain(..).map(|asker| (asker.member.clone(), asker)).collect();
        let members = self.proxies.members.iter();
        let kept = members.map(|member| {
            open.remove(member)
                .unwrap_or_else(|| Asker::new(self.mesh, member.clone()).patient(PATIENCE))
        });
        self.askers = kept.collect();
        Ok(())
    }
}

/// Prints what is now, and ends.
async fn snapshot(watched: &mut Watched<'_>, view: &View, json: bool) -> Result<(), Error> {
    let frame = watched.frame().await;
    if frame.silent.len() == watched.proxies.members.len() {
        return Err(Error::Silence { silent: frame.silent });
    }
    let asked = Asked::of(watched.mesh, &watched.proxies, &frame.silent);
    if json {
        return print_json(&Shown { asked, services: &frame.services });
    }
    let lines = view.lines(&frame.services, colours());
    print(|out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?;
    asked.say();
    Ok(())
}

/// Redraws until somebody wants it to end.
async fn live(mut watched: Watched<'_>, mut view: View) -> Result<(), Error> {
    let mut terminal = Terminal::take().map_err(Error::Print)?;
    let mut tick = interval(FRAME);
    let mut frame = Frame::default();
    let colours = colours();
    loop {
        // Keys are obeyed while proxies are asked.
        let (mesh, proxies) = (watched.mesh.name(), watched.proxies.members.len());
        let head = |frame: &Frame| head(&mesh, proxies, frame);
        {
            let mut asked = Box::pin(watched.frame());
            frame = loop {
                tokio::select! {
                    new = &mut asked => break new,
                    happening = terminal.happening() => {
                        if ends(happening, &mut view) {
                            return Ok(());
                        }
                        draw(&terminal, head(&frame), &view, &frame, colours)?;
                    }
                }
            };
        }
        draw(&terminal, head(&frame), &view, &frame, colours)?;
        loop {
            tokio::select! {
                _ = tick.tick() => break,
                happening = terminal.happening() => {
                    if ends(happening, &mut view) {
                        return Ok(());
                    }
                    draw(&terminal, head(&frame), &view, &frame, colours)?;
                }
            }
        }
    }
}

fn ends(happening: Happening, view: &mut View) -> bool {
    match happening {
        Happening::End => true,
        Happening::Typed(key) => view.ends(key),
    }
}

/// What is above the table.
fn head(mesh: &str, proxies: usize, frame: &Frame) -> String {
    let answered = proxies.saturating_sub(frame.silent.len());
    let trouble = match (&frame.trouble, frame.silent.first()) {
        (Some(trouble), _) => format!("; {trouble}"),
        (None, Some(silent)) => format!("; no answer from {}: {}", silent.member, silent.why),
        (None, None) => String::new(),
    };
    format!("remora top: {mesh}, {answered} of {proxies} proxies, last 10 s{trouble}")
}

fn draw(
    terminal: &Terminal,
    head: String,
    view: &View,
    frame: &Frame,
    colours: Colours,
) -> Result<(), Error> {
    let table = view.lines(&frame.services, colours);
    terminal.draw(&fitted(head, view.help(), table, terminal.rows())).map_err(Error::Print)
}

/// The lines that fit, and how many do not.
fn fitted(head: String, help: String, table: Vec<String>, rows: usize) -> Vec<String> {
    let room = rows.saturating_sub(3).max(2);
    let mut lines = vec![head, help, String::new()];
    if table.len() <= room {
        lines.extend(table);
        return lines;
    }
    let hidden = table.len() - (room - 1);
    lines.extend(table.into_iter().take(room - 1));
    lines.push(format!("… {hidden} lines more; / filters"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let table = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>();
        let fitted = |n, rows| fitted("head".to_owned(), "help".to_owned(), table(n), rows);
        assert_eq!(fitted(5, 8), ["head", "help", "", "0", "1", "2", "3", "4"]);
        let cut = fitted(6, 8);
        assert_eq!((cut.len(), cut[7].as_str()), (8, "… 2 lines more; / filters"));
        assert_eq!(fitted(6, 1).len(), 5);
    }
}
