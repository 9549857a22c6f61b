//! `remora why ID`: what became of one request, and why.
//!
//! `story` tells a record, `advice` says what to do about a reason.

mod advice;
mod story;

use std::process::ExitCode;

use serde::Serialize;

use super::{
    EXIT_STATUS,
    answers::{Decision, Decisions},
    drive,
    error::Error,
    mesh::{Answers, Member, Mesh, each},
    place::Place,
    print, print_json, query_value,
};

/// Records of another proxy among which the other side of a request is looked for.
const LOOKED_AT: usize = 256;

/// `remora why`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// Id of the decision: the answer's header remora-decision-id, or a line of `remora tap`
    #[arg(value_parser = id)]
    id: String,
    /// Print [{namespace, pod, decision}], the caller's side first
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// A record and whose proxy has it.
#[derive(Debug, Serialize)]
struct Found {
    namespace: String,
    pod: String,
    decision: Decision,
    #[serde(skip)]
    member: Member,
}

impl Found {
    fn new(member: Member, decision: Decision) -> Self {
        let (namespace, pod) = (member.namespace.clone(), member.pod.clone());
        Self { namespace, pod, decision, member }
    }

    fn is_inbound(&self) -> bool {
        self.decision.direction == "inbound"
    }
}

/// Runs it: status 0 where the record was found.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    drive(&args.place, async |mesh| {
        let mut found = find(mesh, args).await?;
        let other = other_sides(mesh, args, &found).await;
        found.extend(other);
        // The caller's side first, then in the order of names.
        found.sort_by(|a, b| (a.is_inbound(), &a.member).cmp(&(b.is_inbound(), &b.member)));
        if args.json {
            print_json(&found)?;
        } else {
            let stories = found.iter().map(|one| story::of(&one.member, &one.decision));
            let lines = stories.collect::<Vec<_>>().join(&String::new());
            print(|out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The records of that id, of whichever proxies have one.
async fn find(mesh: &Mesh, args: &Args) -> Result<Vec<Found>, Error> {
    let proxies = mesh.proxies(&args.place).await?;
    let mut askers = mesh.askers(&proxies.members);
    let path = format!("/decisions?id={}", args.id);
    let Answers { given, silent } =
        each(&mut askers, async |asker| asker.json::<Decisions>(&path).await).await;
    if given.is_empty() {
        return Err(Error::Silence { silent });
    }
    let asked = given.len();
    let found: Vec<Found> = given
        .into_iter()
        .flat_map(|(member, answer)| {
            // A proxy that knows no ids answers with all it has.
            let ours = answer.decisions.into_iter().filter(|decision| decision.id == args.id);
            ours.map(move |decision| Found::new(member.clone(), decision))
        })
        .collect();
    if found.is_empty() {
        let silent = match silent.as_slice() {
            [] => String::new(),
            [one] => format!("; {} did not answer", one.member),
            [one, rest @ ..] => format!("; {} and {} more did not answer", one.member, rest.len()),
        };
        return Err(Error::Unknown(format!(
            "no decision {}: {asked} proxies were asked in {}{silent}; each keeps only the last ones, \
             so the request may be too long ago",
            args.id,
            mesh.name()
        )));
    }
    Ok(found)
}

/// What the proxies of the endpoints say of the same request, where a trace ties them together.
async fn other_sides(mesh: &Mesh, args: &Args, found: &[Found]) -> Vec<Found> {
    let Some((trace, one)) = found
        .iter()
        .filter(|one| !one.is_inbound())
        .find_map(|one| Some((one.decision.trace_id.as_ref()?, one)))
    else {
        return Vec::new();
    };
    let called: Vec<&str> = one.decision.attempts.iter().map(|try_| try_.pod.as_str()).collect();
    // The story is not less for it where they cannot be asked.
    let Ok(proxies) = mesh.proxies(&args.place.everywhere()).await else { return Vec::new() };
    let theirs = proxies.members.into_iter().filter(|member| {
        called.contains(&member.pod.as_str()) && found.iter().all(|one| one.member != *member)
    });
    let mut askers = mesh.askers(&theirs.collect::<Vec<_>>());
    let path = format!("/decisions?limit={LOOKED_AT}&trace={}", query_value(trace));
    let answers = each(&mut askers, async |asker| asker.json::<Decisions>(&path).await).await;
    let same = |decision: &Decision| {
        decision.direction == "inbound" && decision.trace_id.as_ref() == Some(trace)
    };
    let sides = answers.given.into_iter().flat_map(|(member, answer)| {
        let ours = answer.decisions.into_iter().filter(same).collect::<Vec<_>>();
        ours.into_iter().map(move |decision| Found::new(member.clone(), decision))
    });
    sides.collect()
}

/// 16 hexadecimal digits.
fn id(text: &str) -> Result<String, String> {
    let fits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match fits {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!("{text:?} is no id of a decision, which has 16 hexadecimal digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_sixteen_hexadecimal_digits() {
        assert_eq!(id("00C0FFEE00c0ffee").as_deref(), Ok("00c0ffee00c0ffee"));
        assert!(id("c0ffee").is_err() && id("00c0ffee00c0ffeg").is_err() && id("").is_err());
    }
}
