//! Asks the daemon over its control socket.

use http_body_util::{BodyExt, Full};
use hyper::{Request as HttpRequest, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::PathBuf;
use tokio::net::UnixStream;
use ublk_target::api::{ApiError, Request};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("Cannot reach holdfastd at {path}: {reason}; is it running, and is --socket right?")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The answer is no.
    #[error("{0}")]
    Refused(String),
}

/// A daemon's control socket.
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The daemon whose socket is at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When the daemon cannot be reached or refuses.
    pub fn ask(&self, request: &Request) -> Result<Value, ClientError> {
        let unreachable = |reason: String| ClientError::Unreachable { path: self.path.clone(), reason };
        let body = serde_json::to_vec(request).map_err(|error| unreachable(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| unreachable(error.to_string()))?;
        let (ok, bytes) = runtime.block_on(self.exchange(body)).map_err(|error| unreachable(error.to_string()))?;
        if !ok {
            let error = serde_json::from_slice(&bytes)
                .map_or_else(|_| String::from_utf8_lossy(&bytes).into_owned(), |error: ApiError| error.error);
            return Err(ClientError::Refused(error));
        }
        serde_json::from_slice(&bytes).map_err(|error| unreachable(error.to_string()))
    }

    async fn exchange(&self, body: Vec<u8>) -> anyhow::Result<(bool, Bytes)> {
        let stream = UnixStream::connect(&self.path).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = HttpRequest::post("/v1/request")
            .header("host", "holdfast")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let ok = response.status().is_success();
        let bytes = response.into_body().collect().await?.to_bytes();
        driver.abort();
        Ok((ok, bytes))
    }
}
