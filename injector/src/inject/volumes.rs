//! What the proxy reads: its pod's token and the roots to trust.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use remora_core::names::{TOKEN_AUDIENCE, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY};

const TOKEN_VOLUME: &str = "remora-identity-token";
const TOKEN_DIR: &str = "/var/run/remora/identity";
const TOKEN_FILE: &str = "token";
/// The kubelet replaces a token at 80 % of its life.
const TOKEN_SECONDS: i64 = 86_400;
const TRUST_VOLUME: &str = TRUST_BUNDLE_CONFIG_MAP;
const TRUST_DIR: &str = "/var/run/remora/trust";

/// Names of our volumes.
pub(super) const NAMES: [&str; 2] = [TOKEN_VOLUME, TRUST_VOLUME];

/// The token's own audience keeps it from being worth anything at the Kubernetes API, and its own
/// volume makes it independent of `automountServiceAccountToken`.
pub(super) fn all() -> [Volume; 2] {
    [token_volume(), trust_volume()]
}

/// Where the proxy finds them.
pub(super) fn mounts() -> Vec<VolumeMount> {
    vec![mount(TOKEN_VOLUME, TOKEN_DIR), mount(TRUST_VOLUME, TRUST_DIR)]
}

/// Path of the roots in the proxy's container.
pub(super) fn trust_bundle() -> String {
    format!("{TRUST_DIR}/{TRUST_BUNDLE_KEY}")
}

/// Path of the token in the proxy's container.
pub(super) fn token_file() -> String {
    format!("{TOKEN_DIR}/{TOKEN_FILE}")
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn token_volume() -> Volume {
    Volume {
        name: TOKEN_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(TOKEN_AUDIENCE.to_owned()),
                    expiration_seconds: Some(TOKEN_SECONDS),
                    path: TOKEN_FILE.to_owned(),
                }),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn trust_volume() -> Volume {
    Volume {
        name: TRUST_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: TRUST_BUNDLE_CONFIG_MAP.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}
