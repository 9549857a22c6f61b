//! A certificate authority for tests.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use remora_core::spiffe::SpiffeId;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use super::{
    identity::Identity,
    material::{Certificate, Material},
    verify::TrustBundle,
};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct TestCa(CertifiedIssuer<'static, KeyPair>);

/// Workload identity `shop/<account>`.
pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).unwrap()
}

pub(crate) fn now() -> Duration {
    Duration::from_secs(UnixTime::now().as_secs())
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new("cluster.local", vec![self.root()]).unwrap()
    }

    /// Signs a leaf whose URI names are `uris`.
    pub(crate) fn sign(
        &self,
        key: &impl PublicKeyData,
        uris: &[&str],
        (not_before, not_after): (Duration, Duration),
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::UNIX_EPOCH + not_before).into();
        params.not_after = (SystemTime::UNIX_EPOCH + not_after).into();
        params.signed_by(key, &self.0).unwrap().der().clone()
    }

    pub(crate) fn certificate_for(
        &self,
        uris: &[&str],
        validity: (Duration, Duration),
    ) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let leaf = self.sign(&key, uris, validity);
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let time = UnixTime::since_unix_epoch;
        Certificate::new(vec![leaf], der, time(validity.0), time(validity.1)).unwrap()
    }

    /// A certificate that is good now.
    pub(crate) fn certificate(&self, id: &SpiffeId) -> Certificate {
        self.certificate_for(&[id.as_str()], (now() - HOUR, now() + HOUR))
    }

    pub(crate) fn material(&self, id: &SpiffeId) -> Arc<Material> {
        Arc::new(Material::new(self.certificate(id), self.bundle()).unwrap())
    }

    pub(crate) fn identity(&self, id: &SpiffeId) -> Identity {
        let identity = Identity::new();
        identity.install(self.certificate(id), self.bundle()).unwrap();
        identity
    }
}
