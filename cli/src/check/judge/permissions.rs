//! Who may do what they need to.

use super::named;
use crate::check::{
    api::Read,
    facts::{After, Program},
    permissions::Permission,
    report::Line,
};

/// The person who is going to install.
pub(super) fn install(may: &[(Permission, Read<bool>)]) -> Vec<Line> {
    const CHECK: &str = "permissions.install";
    vec![judge(
        CHECK,
        may,
        "you may do what an install does",
        "you may not",
        "ask for cluster-admin, or let someone who has it run remora install | kubectl apply -f -",
    )]
}

/// Our two ServiceAccounts.
pub(super) fn programs(after: &After) -> Vec<Line> {
    let of = |check, program: &Program| {
        judge(
            check,
            &program.may,
            &format!("ServiceAccount {} may do what it needs to", program.name),
            &format!("ServiceAccount {} may not", program.name),
            "put its roles back: remora install | kubectl apply -f -",
        )
    };
    vec![
        of("permissions.control-plane", &after.control_plane),
        of("permissions.injector", &after.injector),
    ]
}

fn judge(
    check: &'static str,
    may: &[(Permission, Read<bool>)],
    fine: &str,
    not: &str,
    mend: &str,
) -> Line {
    if let Some(why) = may.iter().find_map(|(_, answer)| answer.as_ref().err()) {
        return Line::unread(check, &format!("whether {fine}"), why);
    }
    let missing: Vec<String> = may
        .iter()
        .filter(|(_, answer)| answer == &Ok(false))
        .map(|(permission, _)| permission.to_string())
        .collect();
    if missing.is_empty() {
        Line::ok(check, format!("{fine} ({} permissions)", may.len()))
    } else {
        Line::failed(check, format!("{not} {}", named(&missing)), mend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{api::Unread, permissions, report::Status};

    #[test]
    fn what_is_missing_is_named() {
        let mut may: Vec<_> = permissions::install().into_iter().map(|p| (p, Ok(true))).collect();
        assert_eq!(install(&may)[0].status, Status::Ok);
        may[1].1 = Ok(false);
        let line = install(&may).remove(0);
        assert_eq!(line.status, Status::Failed);
        assert_eq!(line.message, "you may not create namespaces");
        may[0].1 = Err(Unread::Forbidden { need: "create subjectaccessreviews".to_owned() });
        assert_eq!(install(&may)[0].status, Status::Skipped);
    }
}
