//! Certificates made for a test, and clients that speak TLS.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Answer, Call, Gateway, PATIENCE};

/// A certificate authority of a test's own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "an authority of a test");
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate and a key for `names`.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_with(names, |_| {})
    }

    pub fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        change(&mut parameters);
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Writes `NAME.pem` and `NAME.key` for `names` into `folder`, each in one step.
    pub fn write(&self, folder: &Path, name: &str, names: &[&str]) {
        let (cert, key) = self.issue(names);
        write(folder, &format!("{name}.key"), &key);
        write(folder, &format!("{name}.pem"), &cert);
    }

    /// What a client that trusts it, and nobody else, connects with.
    pub fn client(&self) -> TlsClient {
        TlsClient {
            authority: self.0.der().clone(),
            own: None,
            protocols: vec![b"http/1.1".to_vec()],
            newest: true,
        }
    }
}

/// Writes a file that nobody else can read, in one step.
pub fn write(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}.new"));
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(new, folder.join(name)).unwrap();
}

/// How a client connects.
#[derive(Clone)]
pub struct TlsClient {
    authority: CertificateDer<'static>,
    own: Option<(String, String)>,
    protocols: Vec<Vec<u8>>,
    newest: bool,
}

impl TlsClient {
    /// Shows a certificate of its own.
    pub fn showing(mut self, pair: (String, String)) -> Self {
        self.own = Some(pair);
        self
    }

    /// Offers other protocols than HTTP/1.1.
    pub fn offering(mut self, protocols: &[&str]) -> Self {
        self.protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Speaks TLS 1.2 and nothing newer.
    pub fn of_1_2(mut self) -> Self {
        self.newest = false;
        self
    }

    pub fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = if self.newest { rustls::ALL_VERSIONS } else { &[&rustls::version::TLS12] };
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols.clone_from(&self.protocols);
        config
    }

    /// Shakes hands with whoever is at `address` as `name`.
    pub async fn connect(&self, address: SocketAddr, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_after(b"", address, name).await
    }

    /// As [`TlsClient::connect`], with some bytes before the handshake.
    pub async fn connect_after(
        &self,
        first: &[u8],
        address: SocketAddr,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(first).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(self.config()));
        tokio::time::timeout(PATIENCE, connector.connect(name, stream)).await?
    }
}

/// The certificate that a connection was made with.
pub fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

impl Call {
    /// Sends it over a connection that is there already, by HTTP/1.1.
    pub async fn over(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let work = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let (parts, body) = sender.send_request(self.request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        tokio::time::timeout(PATIENCE, work).await?
    }
}

impl Gateway {
    /// A GET by HTTPS on a connection of its own, as `localhost`.
    pub async fn get_by_https(&self, client: &TlsClient, target: &str) -> Answer {
        let stream = client.connect(self.address, "localhost").await.unwrap();
        self.get(target).over(stream).await.unwrap()
    }
}
