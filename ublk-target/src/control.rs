//! The control socket: HTTP and JSON on a unix socket that only its owner can open.

use crate::{
    api::{ApiError, Request},
    node::Asked,
};
use axum::{Json, Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use serde_json::Value;
use std::io;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

/// Answers requests for ever.
pub async fn serve(listener: UnixListener, node: mpsc::Sender<Asked>) -> io::Result<()> {
    let router = Router::new().route("/v1/request", post(request)).with_state(node);
    axum::serve(listener, router).await
}

/// The body is JSON whatever its content type says: nothing else is spoken here.
async fn request(
    State(node): State<mpsc::Sender<Asked>>,
    body: Bytes,
) -> Result<Json<Value>, (StatusCode, Json<ApiError>)> {
    let request: Request = serde_json::from_slice(&body).map_err(|error| {
        let error = format!("This is no request: {error}; docs/control.md has the commands and their fields");
        (StatusCode::BAD_REQUEST, Json(ApiError::new(error)))
    })?;
    let (sender, receiver) = oneshot::channel();
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, Json(ApiError::new("The daemon is stopping")));
    node.send((request, sender)).await.map_err(|_| gone())?;
    match receiver.await {
        Ok(Ok(value)) => Ok(Json(value)),
        Ok(Err(error)) => Err((StatusCode::CONFLICT, Json(error))),
        Err(_) => Err(gone()),
    }
}
