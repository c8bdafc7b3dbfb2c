//! The control socket: HTTP and JSON on a unix socket that only its owner can open.

use crate::{
    api::{ApiError, Request},
    node::Asked,
};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
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

async fn request(
    State(node): State<mpsc::Sender<Asked>>,
    Json(request): Json<Request>,
) -> Result<Json<Value>, (StatusCode, Json<ApiError>)> {
    let (sender, receiver) = oneshot::channel();
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, Json(ApiError::new("The daemon is stopping")));
    node.send((request, sender)).await.map_err(|_| gone())?;
    match receiver.await {
        Ok(Ok(value)) => Ok(Json(value)),
        Ok(Err(error)) => Err((StatusCode::CONFLICT, Json(error))),
        Err(_) => Err(gone()),
    }
}
