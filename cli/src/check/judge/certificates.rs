//! What runs out, and whether everybody trusts the same roots.

use remora_core::names::{
    CONTROL_PLANE_SERVICE_ACCOUNT, INJECTOR_SERVICE_ACCOUNT, INJECTOR_TLS_SECRET, ISSUER_SECRET,
    SYSTEM_NAMESPACE, TRUST_BUNDLE_CONFIG_MAP,
};

use super::{count, named};
use crate::check::{
    api::Unread,
    certificate::{self, Certificate, date, leads_to, span},
    facts::After,
    report::Line,
};

const DAY: i64 = 86_400;
/// Issuers are replaced by people: they need time.
const ISSUER_SOON: i64 = 30 * DAY;
/// The injector renews its own at two thirds; less than this means that it does not.
const SERVING_SOON: i64 = 7 * DAY;
const EXPIRY_METRIC: &str = "remora_control_plane_ca_expiry_timestamp_seconds";

pub(super) fn lines(after: &After, now: i64) -> Vec<Line> {
    let mut lines = vec![issuer(after, now), serving(after, now)];
    lines.extend(bundles(after, now));
    lines
}

fn issuer(after: &After, now: i64) -> Line {
    const CHECK: &str = "certificates.issuer";
    let certificates = &after.certificates;
    let (ends, source) = match &certificates.issuer {
        Ok(chain) => {
            if let Ok(Ok(roots)) =
                certificates.bundle.as_ref().map(|pem| certificate::read(pem.as_bytes()))
                && !leads_to(chain, &roots)
            {
                return Line::failed(
                    CHECK,
                    format!(
                        "the trust bundle has no root for the issuer in Secret {ISSUER_SECRET}: \
                         proxies will not trust new certificates"
                    ),
                    "put the issuer's root into the Secret's ca.crt, beside the old one",
                );
            }
            (first_end(chain), format!("Secret {ISSUER_SECRET}"))
        }
        Err(Unread::Absent) => {
            return Line::failed(
                CHECK,
                format!("Secret {ISSUER_SECRET} is not there: no proxy gets a certificate"),
                format!(
                    "the control plane makes it at its start unless --external-issuer says that \
                     somebody else does; see kubectl logs \
                     deployment/{CONTROL_PLANE_SERVICE_ACCOUNT} -n {SYSTEM_NAMESPACE}"
                ),
            );
        }
        Err(why @ Unread::Failed { .. }) => {
            return Line::failed(
                CHECK,
                format!("the issuer in Secret {ISSUER_SECRET} is unusable: {why}"),
                "put a certificate chain and its key there; the last good one is in force until then",
            );
        }
        Err(why @ Unread::Forbidden { .. }) => match elsewhere(after) {
            Some(found) => found,
            None => return Line::unread(CHECK, "the issuer", why),
        },
    };
    let mend = format!(
        "put a new issuer into Secret {ISSUER_SECRET} in {SYSTEM_NAMESPACE}: its root into ca.crt \
         first, then tls.crt and tls.key; the control plane follows without a restart"
    );
    expiry(CHECK, &format!("issuer ({source})"), ends, now, ISSUER_SOON, mend)
}

/// Where the Secret may not be read, the control plane and the trust bundle say the same.
fn elsewhere(after: &After) -> Option<(i64, String)> {
    let metrics = after.replicas.iter().filter_map(|replica| replica.metrics.as_ref().ok());
    let told = metrics.filter_map(|metrics| metrics.value(EXPIRY_METRIC)).map(|ends| ends as i64);
    if let Some(ends) = told.filter(|ends| *ends > 0).min() {
        return Some((ends, "by the control plane's metrics".to_owned()));
    }
    let roots = certificate::read(after.certificates.bundle.as_ref().ok()?.as_bytes()).ok()?;
    Some((last_end(&roots), "by the trust bundle's newest root".to_owned()))
}

fn serving(after: &After, now: i64) -> Line {
    const CHECK: &str = "certificates.webhook";
    let logs = format!("kubectl logs deployment/{INJECTOR_SERVICE_ACCOUNT} -n {SYSTEM_NAMESPACE}");
    match &after.webhook.serving {
        Ok(chain) => expiry(
            CHECK,
            &format!("webhook's certificate (Secret {INJECTOR_TLS_SECRET})"),
            first_end(chain),
            now,
            SERVING_SOON,
            format!("the injector renews it long before; see {logs}"),
        ),
        Err(Unread::Absent) => Line::failed(
            CHECK,
            format!("Secret {INJECTOR_TLS_SECRET} is not there"),
            format!("the injector makes it at its start; see {logs}"),
        ),
        Err(why) => Line::unread(CHECK, "the webhook's certificate", why),
    }
}

/// The chain is good until the first of it runs out.
fn first_end(chain: &[Certificate]) -> i64 {
    chain.iter().map(|certificate| certificate.not_after).min().unwrap_or(0)
}

fn last_end(roots: &[Certificate]) -> i64 {
    roots.iter().map(|certificate| certificate.not_after).max().unwrap_or(0)
}

fn expiry(check: &'static str, what: &str, ends: i64, now: i64, soon: i64, mend: String) -> Line {
    let (left, on) = (ends - now, date(ends));
    if left <= 0 {
        return Line::failed(check, format!("{what} ran out {} ago, on {on}", span(-left)), mend);
    }
    let message = format!("{what} is good for {}, until {on}", span(left));
    if left < soon { Line::warning(check, message, mend) } else { Line::ok(check, message) }
}

fn bundles(after: &After, now: i64) -> Vec<Line> {
    const CHECK: &str = "certificates.trust-bundle";
    let leader = format!(
        "the control plane's leader writes it; see kubectl logs \
         deployment/{CONTROL_PLANE_SERVICE_ACCOUNT} -n {SYSTEM_NAMESPACE}"
    );
    let what = format!("ConfigMap {TRUST_BUNDLE_CONFIG_MAP}");
    let ours = match &after.certificates.bundle {
        Ok(ours) => ours,
        Err(Unread::Absent) => {
            let message = format!("{what} is not there: proxies cannot start");
            return vec![Line::failed(CHECK, message, leader)];
        }
        Err(why) => return vec![Line::unread(CHECK, &what, why)],
    };
    let roots = match certificate::read(ours.as_bytes()) {
        Ok(roots) => roots,
        Err(why) => {
            return vec![Line::failed(CHECK, format!("{what} is unusable: {why}"), leader)];
        }
    };
    let live = roots.iter().filter(|root| root.not_after > now).count();
    let copies = &after.certificates.copies;
    let of = |fits: fn(&Result<String, Unread>, &str) -> bool| -> Vec<&str> {
        let found = copies.iter().filter(|(_, copy)| fits(copy, ours));
        found.map(|(name, _)| name.as_str()).collect()
    };
    let absent = of(|copy, _| matches!(copy, Err(Unread::Absent)));
    let other = of(|copy, ours| copy.as_ref().is_ok_and(|copy| copy.trim() != ours.trim()));
    let mut lines = Vec::new();
    if live == 0 {
        let mend = format!("put a root that is valid into Secret {ISSUER_SECRET}, key ca.crt");
        lines.push(Line::failed(CHECK, format!("every root in {what} has run out"), mend));
    }
    if !absent.is_empty() {
        let message = format!("{what} is missing in {}: pods there cannot start", named(&absent));
        lines.push(Line::failed(CHECK, message, leader.clone()));
    }
    if !other.is_empty() {
        let message = format!("{what} in {} is not the one of {SYSTEM_NAMESPACE}", named(&other));
        lines.push(Line::failed(CHECK, message, leader));
    }
    if let Some((name, Err(why))) =
        copies.iter().find(|(_, copy)| matches!(copy, Err(why) if *why != Unread::Absent))
    {
        lines.push(Line::unread(CHECK, &format!("{what} in {name}"), why));
    }
    if lines.is_empty() {
        let where_to = match copies.len() {
            0 => String::new(),
            n => format!(", the same in {}", count(n, "opted-in namespace")),
        };
        lines.push(Line::ok(CHECK, format!("trust bundle with {}{where_to}", count(live, "root"))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{exposition::Exposition, judge::fixtures, report::Status};

    #[test]
    fn expiry_is_told_in_time() {
        let judged = |left| expiry("c", "it", 1000 + left, 1000, 30 * DAY, String::new()).status;
        assert_eq!(judged(31 * DAY), Status::Ok);
        assert_eq!(judged(29 * DAY), Status::Warning);
        assert_eq!(judged(0), Status::Failed);
        let line = expiry("c", "it", 1000, 1000 + 3 * DAY, 30 * DAY, String::new());
        assert!(line.message.starts_with("it ran out 3 days ago"), "{line:?}");
    }

    #[test]
    fn where_the_secret_is_not_readable_the_control_plane_tells() {
        let mut after = fixtures::after();
        after.certificates.issuer = Err(Unread::Forbidden { need: "get secrets".to_owned() });
        let now = fixtures::NOW;
        let metric = format!("{EXPIRY_METRIC} {}", now + 40 * DAY);
        after.replicas[0].metrics = Ok(Exposition::parse(&metric));
        let line = issuer(&after, now);
        assert_eq!(line.status, Status::Ok);
        assert!(line.message.contains("40 days") && line.message.contains("metrics"), "{line:?}");
        after.replicas.clear();
        assert!(issuer(&after, now).message.contains("newest root"));
        after.certificates.bundle = Err(Unread::Absent);
        assert_eq!(issuer(&after, now).status, Status::Skipped);
    }

    #[test]
    fn an_issuer_that_nobody_trusts_fails() {
        let mut after = fixtures::after();
        after.certificates.issuer = Ok(fixtures::serving_chain());
        let line = issuer(&after, fixtures::NOW);
        assert!(line.message.contains("no root for the issuer"), "{line:?}");
    }

    #[test]
    fn copies_that_are_missing_or_differ_are_named() {
        let mut after = fixtures::after();
        let ours = after.certificates.bundle.clone().unwrap();
        let copies = |rows: &[(&str, Result<String, Unread>)]| {
            rows.iter().map(|(name, copy)| ((*name).to_owned(), copy.clone())).collect()
        };
        after.certificates.copies = copies(&[("a", Ok(format!("{ours}\n")))]);
        let lines = bundles(&after, fixtures::NOW);
        assert_eq!((lines.len(), lines[0].status), (1, Status::Ok));
        assert!(lines[0].message.contains("1 opted-in namespace"));
        after.certificates.copies = copies(&[
            ("a", Ok(ours)),
            ("b", Err(Unread::Absent)),
            ("c", Ok("other".to_owned())),
            ("d", Err(Unread::Forbidden { need: "get configmaps in d".to_owned() })),
        ]);
        let lines = bundles(&after, fixtures::NOW);
        assert!(lines[0].message.contains("missing in b:"), "{lines:?}");
        assert!(lines[1].message.contains("in c is not"), "{lines:?}");
        assert_eq!(lines[2].status, Status::Skipped);
    }
}
