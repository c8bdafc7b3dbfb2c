//! A node's key, and the TLS that knows peers by theirs.
//!
//! Nodes use raw public keys (RFC 7250): there is no certificate, no authority and no name. A peer whose key is not the
//! expected one gets no further than the handshake.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use std::{fmt, str::FromStr, sync::Arc};

/// What comes before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const TEXT_PREFIX: &str = "holdfast-ed25519:";
const PROTOCOL: &[u8] = b"holdfast/1";

/// A node's Ed25519 public key. As text: `holdfast-ed25519:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub [u8; 32]);

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no node key; a key is one line as `ublk-admin key` shows it: {TEXT_PREFIX} and 64 hexadecimal digits"
)]
pub struct KeyTextError(String);

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TEXT_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PeerKey {
    /// Whether the node with this key has signed a message.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl FromStr for PeerKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let error = || KeyTextError(text.chars().take(100).collect());
        let digits = text.trim().strip_prefix(TEXT_PREFIX).ok_or_else(error)?;
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(error());
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(key))
    }
}

/// A node's key pair.
#[derive(Clone)]
pub struct Identity {
    pkcs8: Arc<Vec<u8>>,
    public: PeerKey,
}

/// Why a key pair was not accepted or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are no Ed25519 key pair.
    #[error("The key file does not hold an Ed25519 key in PKCS #8 form")]
    Damaged,
    /// The operating system gave no randomness.
    #[error("No key could be generated")]
    Generate,
}

impl Identity {
    /// A new key pair.
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| IdentityError::Generate)?;
        let document = pair.to_pkcs8v1().map_err(|_| IdentityError::Generate)?;
        Self::from_bytes(document.as_ref())
    }

    /// Reads what [`Identity::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes).map_err(|_| IdentityError::Damaged)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| IdentityError::Damaged)?;
        Ok(Self { pkcs8: Arc::new(bytes.to_vec()), public: PeerKey(public) })
    }

    /// The key pair in PKCS #8 form: keep it secret.
    pub fn to_bytes(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key.
    pub fn public(&self) -> PeerKey {
        self.public
    }

    /// Signs a message; empty if the key pair is none, which it was checked to be.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.pkcs8);
        pair.map(|pair| pair.sign(message).as_ref().to_vec()).unwrap_or_default()
    }

    fn certified(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.to_vec());
        let key = provider.key_provider.load_private_key(der.into())?;
        Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki(self.public))], key)))
    }

    /// TLS for the end that dials.
    pub(super) fn client(&self, peer: PeerKey) -> Result<QuicClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let own = self.certified(&provider)?;
        let check = Arc::new(Pinned { peer, algorithms: provider.signature_verification_algorithms });
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(check)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        QuicClientConfig::try_from(config).map_err(|_| Error::General("no cipher suite for QUIC".into()))
    }

    /// TLS for the end that is dialled.
    pub(super) fn server(&self, peer: PeerKey) -> Result<QuicServerConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let own = self.certified(&provider)?;
        let check = Arc::new(Pinned { peer, algorithms: provider.signature_verification_algorithms });
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(check)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        QuicServerConfig::try_from(config).map_err(|_| Error::General("no cipher suite for QUIC".into()))
    }
}

fn spki(key: PeerKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], &key.0].concat()
}

/// Accepts one key.
#[derive(Debug)]
struct Pinned {
    peer: PeerKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, presented: &CertificateDer<'_>) -> Result<(), Error> {
        let presented: &[u8] = presented.as_ref();
        if presented == spki(self.peer) {
            return Ok(());
        }
        let shown = presented.strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok()).map(PeerKey);
        let shown = shown.map_or_else(|| "something else".into(), |key| key.to_string());
        Err(Error::General(format!("the peer's key is {shown}, not {}", self.peer)))
    }

    fn signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(presented.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

const NO_TLS12: Error = Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(presented).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, presented, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(presented).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, presented, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_line_of_text() {
        let key = Identity::generate().unwrap().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!("holdfast-ed25519:12".parse::<PeerKey>().is_err());
        assert!(key.to_string().replace("holdfast", "ssh").parse::<PeerKey>().is_err());
    }

    #[test]
    fn an_identity_survives_its_file() {
        let identity = Identity::generate().unwrap();
        assert_eq!(Identity::from_bytes(identity.to_bytes()).unwrap().public(), identity.public());
        assert_eq!(Identity::from_bytes(b"nonsense").map(|_| ()), Err(IdentityError::Damaged));
    }
}
