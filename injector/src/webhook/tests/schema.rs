//! The response half of AdmissionReview v1, field by field after the API reference ("AdmissionReview
//! v1 admission.k8s.io"), with what the API server's code checks beyond it. Unknown fields fail.

use std::collections::BTreeMap;

use json_patch::Patch;
use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::Status};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AdmissionReview {
    api_version: String,
    kind: String,
    response: AdmissionResponse,
}

/// `AdmissionResponse`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AdmissionResponse {
    pub(super) uid: String,
    pub(super) allowed: bool,
    /// `metav1.Status`, named "result" in Go and "status" in JSON.
    pub(super) status: Option<Status>,
    pub(super) patch: Option<ByteString>,
    pub(super) patch_type: Option<String>,
    pub(super) audit_annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) warnings: Vec<String>,
}

impl AdmissionResponse {
    pub(super) fn operations(&self) -> Option<Patch> {
        self.patch.as_ref().map(|patch| serde_json::from_slice(&patch.0).unwrap())
    }
}

/// Reads an answer to the request of this uid as the API server does
/// (`k8s.io/apiserver/pkg/admission/plugin/webhook/request.VerifyAdmissionResponse`).
pub(super) fn check(uid: &str, body: &[u8]) -> AdmissionResponse {
    let text = String::from_utf8_lossy(body);
    let review: AdmissionReview =
        serde_json::from_slice(body).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(review.api_version, "admission.k8s.io/v1");
    assert_eq!(review.kind, "AdmissionReview");
    let response = review.response;
    assert_eq!(response.uid, uid);
    match (&response.patch, response.patch_type.as_deref()) {
        (None, None) => {}
        (Some(_), Some("JSONPatch")) => assert!(response.allowed, "a patch for a denied pod"),
        other => panic!("patch and patchType go together: {other:?}"),
    }
    if !response.allowed {
        let status = response.status.as_ref().expect("a denial says why");
        assert!(status.message.as_ref().is_some_and(|m| !m.is_empty()));
        assert!(status.code.is_some_and(|code| (400..600).contains(&code)));
    }
    assert!(response.warnings.iter().all(|w| w.chars().count() <= 120 && !w.contains('\n')));
    assert!(response.warnings.iter().map(String::len).sum::<usize>() <= 4096);
    assert!(response.audit_annotations.as_ref().is_none_or(|map| map.len() < 10));
    response
}
