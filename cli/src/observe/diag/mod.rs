//! `remora diag`: all that a bug report needs in one archive, and nothing secret.
//!
//! - `tar` and `archive` the file and its table of contents; `redact` what never goes in;
//! - `kubernetes` what the API server says of our pods.

mod archive;
mod kubernetes;
mod redact;
mod tar;

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use self::archive::Archive;
use super::{
    EXIT_STATUS, drive,
    error::Error,
    mesh::{AT_A_TIME, Asker, Local, Member, Mesh, Unanswered},
    place::Place,
};
use crate::check;

/// Proxies that are asked.
const MAX_PROXIES: usize = 200;
/// Longest name of a folder, so that paths fit into the archive.
const MAX_FOLDER: usize = 120;
/// Questions to each proxy, and to each replica of the control plane.
const OF_A_PROXY: [&str; 9] = [
    "/config",
    "/services",
    "/endpoints",
    "/inbound",
    "/events",
    "/decisions",
    "/certs",
    "/ready",
    "/metrics",
];
const OF_A_CONTROL_PLANE: [&str; 4] = ["/services", "/proxies", "/ready", "/metrics"];

/// `remora diag`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// Archive to write; by default remora-diag-DATE-TIME.tar in this directory
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Runs it: status 0 where the archive was written, whatever is in it.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    drive(&args.place, async |mesh| {
        let now = check::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = args.output.clone().unwrap_or_else(|| default_name(now).into());
        let failed = |source| Error::Write { path: path.clone(), source };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        // Readable by its owner only, and never half of it under the name that was asked for.
        let part = tempfile::NamedTempFile::new_in(dir.unwrap_or(Path::new(".")));
        let archive = Archive::new(BufWriter::new(part.map_err(failed)?), now).map_err(failed)?;
        let (part, inside, left_out) = collect(archive, mesh, &args.place).await.map_err(failed)?;
        let part = part.into_inner().map_err(|error| failed(error.into_error()))?;
        part.persist(&path).map_err(|error| failed(error.error))?;
        eprintln!(
            "remora: {} has {inside} files of {}; {left_out} could not be had, which its \
             MANIFEST.txt lists",
            path.display(),
            mesh.name()
        );
        Ok(ExitCode::SUCCESS)
    })
}

fn default_name(now: u64) -> String {
    let at = i64::try_from(now).ok().and_then(|now| Timestamp::from_second(now).ok());
    format!("remora-diag-{}.tar", at.unwrap_or_default().strftime("%Y%m%d-%H%M%S"))
}

/// Puts everything in that can be had.
async fn collect<W: Write>(
    mut archive: Archive<W>,
    mesh: &Mesh,
    place: &Place,
) -> io::Result<(W, usize, usize)> {
    let mut members = match mesh.proxies(place).await {
        Ok(proxies) => proxies.members,
        Err(error) => {
            archive.leave_out("proxies", error);
            Vec::new()
        }
    };
    for member in members.iter().skip(MAX_PROXIES) {
        archive.leave_out(format!("proxies/{member}"), format!("more than {MAX_PROXIES} proxies"));
    }
    members.truncate(MAX_PROXIES);
    let versions = ask_all(&mut archive, mesh, "proxies", &members, &OF_A_PROXY).await?;
    match mesh.control_planes().await {
        Ok(planes) => {
            ask_all(&mut archive, mesh, "control-plane", &planes, &OF_A_CONTROL_PLANE).await?;
        }
        Err(error) => archive.leave_out("control-plane", error),
    }
    let versions =
        json!({ "remora": env!("CARGO_PKG_VERSION"), "mesh": mesh.name(), "proxies": versions });
    archive.json("versions.json", versions)?;
    match mesh {
        Mesh::Local(local) => logs(&mut archive, local)?,
        Mesh::Kubernetes(cluster) => kubernetes::collect(&mut archive, cluster, &members).await?,
    }
    archive.finish()
}

/// Adds the answers of these programs; gives the version of each, where it says one.
async fn ask_all(
    archive: &mut Archive<impl Write>,
    mesh: &Mesh,
    folder: &str,
    members: &[Member],
    questions: &[&str],
) -> io::Result<Value> {
    let mut versions = serde_json::Map::new();
    let asked = stream::iter(mesh.askers(members).into_iter().enumerate()).map(
        |(at, mut asker)| async move {
            let answers = questions_to(&mut asker, questions).await;
            (at, asker.member.clone(), answers)
        },
    );
    let mut asked = std::pin::pin!(asked.buffer_unordered(AT_A_TIME));
    while let Some((at, member, answers)) = asked.next().await {
        let folder = format!("{folder}/{}", folder_of(&member, at));
        for (question, answer) in answers {
            let path = format!("{folder}{}", file_of(question));
            match answer {
                Ok(body) => {
                    if question == "/config"
                        && let Ok(config) = serde_json::from_slice::<Value>(&body)
                    {
                        versions.insert(member.to_string(), config["version"].clone());
                    }
                    archive.answer(&path, &body)?;
                }
                Err(why) => archive.leave_out(path, why),
            }
        }
    }
    Ok(Value::Object(versions))
}

/// The answers; none after the first where nobody is there.
async fn questions_to<'q>(
    asker: &mut Asker<'_>,
    questions: &[&'q str],
) -> Vec<(&'q str, Result<Bytes, Unanswered>)> {
    let mut answers = Vec::new();
    for question in questions {
        let answer = asker.body(question).await;
        let gone = matches!(answer, Err(Unanswered::Unreached(_)));
        answers.push((*question, answer));
        if gone {
            break;
        }
    }
    answers
}

/// `/metrics` is a text, `/ready` too; all others are JSON.
fn file_of(question: &str) -> String {
    let ending = if matches!(question, "/metrics" | "/ready") { "txt" } else { "json" };
    format!("{question}.{ending}")
}

/// `namespace/pod`; where that is too long, its begin and a number.
fn folder_of(member: &Member, at: usize) -> String {
    let name = member.to_string();
    match name.char_indices().nth(MAX_FOLDER) {
        None => name,
        Some((end, _)) => format!("{}~{at}", &name[..end]),
    }
}

/// The end of each of the mesh's own logs.
fn logs(archive: &mut Archive<impl Write>, local: &Local) -> io::Result<()> {
    for path in local.logs() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let inside = format!("logs/{name}");
        match end_of(&path) {
            Ok(text) => archive.text(&inside, &text)?,
            Err(error) => archive.leave_out(inside, error),
        }
    }
    Ok(())
}

/// The last lines, as many as a file of the archive may have.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let most = archive::MAX_FILE as u64;
    let from = length.saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may be a part of one, whose secret would not be known as such.
    let whole = match from {
        0 => &text,
        _ => text.split_once('\n').map_or("", |(_, rest)| rest),
    };
    Ok(whole.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::mesh::Way;

    #[test]
    fn the_name_has_date_and_time_in_utc() {
        assert_eq!(default_name(1_795_220_669), "remora-diag-20261121-002429.tar");
    }

    #[test]
    fn folders_are_short_and_each_proxy_has_its_own() {
        let member = |pod: String| Member {
            namespace: "shop".to_owned(),
            pod,
            way: Way::Forward { port: 4191 },
        };
        assert_eq!(folder_of(&member("web-0".to_owned()), 3), "shop/web-0");
        let long = folder_of(&member("x".repeat(253)), 3);
        assert!(long.len() <= MAX_FOLDER + 4 && long.ends_with("x~3"), "{long}");
    }

    #[test]
    fn of_a_long_log_the_end_is_taken_from_a_whole_line_on() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..archive::MAX_FILE / 1024 + 1 {
            file.write_all(line.as_bytes()).unwrap();
        }
        file.write_all(b"last\n").unwrap();
        let end = end_of(file.path()).unwrap();
        assert!(end.len() <= archive::MAX_FILE && end.ends_with("\nlast\n"));
        assert!(end.starts_with(line.as_str()));
    }
}
