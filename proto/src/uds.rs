//! The control transport: gRPC on a unix socket that only the agent's user can open.
//!
//! The server side removes a socket only after a connection to it has proven that nobody serves it. The socket has
//! its mode from the moment it exists. The client side says whether the agent is not running or not accessible.

use std::convert::Infallible;
use std::fs::{File, Permissions};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use crate::control::master_target_client::MasterTargetClient;
use crate::control::process_server_client::ProcessServerClient;
use crate::limits::UNIX_PATH_BYTES_MAX;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Bytes of a reply: a day of points, one per second, is 9 MiB.
pub const REPLY_BYTES_MAX: usize = 64 << 20;

/// Why the control socket can't be served or reached.
#[derive(Debug, Error)]
pub enum UdsError {
    /// The path is too long for a socket.
    #[error("{}: the path of a unix socket has at most {UNIX_PATH_BYTES_MAX} bytes; choose a shorter `control`", path.display())]
    PathTooLong {
        /// As configured.
        path: PathBuf,
    },
    /// Something else stands there.
    #[error("{}: exists and is not a socket; choose another path for `control` or remove it", path.display())]
    NotASocket {
        /// As configured.
        path: PathBuf,
    },
    /// Another agent serves it.
    #[error("{}: an agent is serving this socket already; stop it, or choose another path for `control`", path.display())]
    InUse {
        /// As configured.
        path: PathBuf,
    },
    /// The socket can't be made.
    #[error("{}: can't make the control socket: {source}", path.display())]
    Bind {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server failed.
    #[error("{}: the control socket failed: {source}", path.display())]
    Serve {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// Nobody serves it.
    #[error("no agent answers on {}: is the agent running? start it with `run`, and use the same --config", path.display())]
    NotRunning {
        /// As configured.
        path: PathBuf,
    },
    /// It belongs to another user.
    #[error("{}: permission denied: run this as root or as the user that runs the agent", path.display())]
    Denied {
        /// As configured.
        path: PathBuf,
    },
    /// Another reason.
    #[error("{}: can't connect to the agent: {source}", path.display())]
    Connect {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn check_path(path: &Path) -> Result<(), UdsError> {
    let bytes = path.as_os_str().len();
    if bytes > UNIX_PATH_BYTES_MAX { Err(UdsError::PathTooLong { path: path.to_owned() }) } else { Ok(()) }
}

/// A bound control socket; its file is removed when this is dropped, unless another has taken the path since.
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = self.path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_ours {
            // Nothing is lost if it stays: the next start finds it dead.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Binds the control socket with mode 0600. Missing folders of its path are made. Has to be called inside a tokio runtime.
pub fn bind(path: &Path) -> Result<ControlSocket, UdsError> {
    check_path(path)?;
    let failed = |source| UdsError::Bind { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    remove_dead_socket(path)?;
    let listener = bind_private(path).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => UdsError::InUse { path: path.to_owned() },
        _ => failed(source),
    })?;
    let found = path.symlink_metadata().map_err(failed)?;
    let file = SocketFile { path: path.to_owned(), identity: (found.dev(), found.ino()) };
    Ok(ControlSocket { listener: UnixListener::from_std(listener).map_err(failed)?, file })
}

fn remove_dead_socket(path: &Path) -> Result<(), UdsError> {
    let failed = |source| UdsError::Bind { path: path.to_owned(), source };
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(UdsError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(UdsError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// The kernel gives the file the mode of the unbound socket, so no moment passes in which others could connect.
fn bind_private(path: &Path) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let as_file = File::from(socket.as_fd().try_clone_to_owned()?);
    as_file.set_permissions(Permissions::from_mode(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// Serves one gRPC service until `stop` completes and calls in progress have ended.
pub async fn serve<S, B>(socket: ControlSocket, service: S, stop: impl Future<Output = ()>) -> Result<(), UdsError>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    let ControlSocket { listener, file } = socket;
    let incoming = UnixListenerStream::new(listener);
    let served = Server::builder().serve_with_incoming_shutdown(service, incoming, stop).await;
    served.map_err(|source| UdsError::Serve { path: file.path.clone(), source })
}

/// Connects to the agent that serves `path`.
pub async fn channel(path: &Path) -> Result<Channel, UdsError> {
    check_path(path)?;
    // Connecting here gives the error itself; through the channel it would arrive wrapped.
    let first = UnixStream::connect(path).await.map_err(|source| unreachable_agent(path, source))?;
    drop(first);
    let connect_path = path.to_owned();
    let connector = service_fn(move |_: http::Uri| {
        let path = connect_path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is not used, but gRPC needs one to name the server.
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

fn unreachable_agent(path: &Path, source: io::Error) -> UdsError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => UdsError::NotRunning { path },
        io::ErrorKind::PermissionDenied => UdsError::Denied { path },
        _ => UdsError::Connect { path, source },
    }
}

/// A client of a process-server.
pub async fn process_server(path: &Path) -> Result<ProcessServerClient<Channel>, UdsError> {
    Ok(ProcessServerClient::new(channel(path).await?).max_decoding_message_size(REPLY_BYTES_MAX))
}

/// A client of a master-target.
pub async fn master_target(path: &Path) -> Result<MasterTargetClient<Channel>, UdsError> {
    Ok(MasterTargetClient::new(channel(path).await?).max_decoding_message_size(REPLY_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::control::process_server_server::{ProcessServer, ProcessServerServer};
    use crate::control::{
        CancelJobReply, CancelJobRequest, FollowJobRequest, JobsReply, JobsRequest, PointReply, PointRequest,
        ProcessServerStatus, StatusRequest,
    };

    struct Agent;

    #[tonic::async_trait]
    impl ProcessServer for Agent {
        type VerifyStream = tokio_stream::Empty<Result<crate::control::VerifyProgress, Status>>;

        async fn verify(
            &self,
            _: Request<crate::control::VerifyRequest>,
        ) -> Result<Response<Self::VerifyStream>, Status> {
            Ok(Response::new(tokio_stream::empty()))
        }

        type FollowJobStream = tokio_stream::Empty<Result<crate::control::Job, Status>>;

        async fn jobs(&self, _: Request<JobsRequest>) -> Result<Response<JobsReply>, Status> {
            Ok(Response::new(JobsReply::default()))
        }

        async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobReply>, Status> {
            Err(Status::not_found("there is no such job"))
        }

        async fn follow_job(&self, _: Request<FollowJobRequest>) -> Result<Response<Self::FollowJobStream>, Status> {
            Ok(Response::new(tokio_stream::empty()))
        }

        async fn status(&self, _: Request<StatusRequest>) -> Result<Response<ProcessServerStatus>, Status> {
            Ok(Response::new(ProcessServerStatus { name: "ps-1".to_owned(), ..Default::default() }))
        }

        async fn point(&self, _: Request<PointRequest>) -> Result<Response<PointReply>, Status> {
            Err(Status::not_found("there is no group of this name"))
        }
    }

    #[tokio::test]
    async fn a_call_and_its_failure_go_through_the_socket_and_the_socket_goes_with_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/control.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(socket, ProcessServerServer::new(Agent), async {
            drop(stopped.await);
        }));
        let mut client = process_server(&path).await.unwrap();
        assert_eq!(client.status(StatusRequest {}).await.unwrap().into_inner().name, "ps-1");
        let status = client.point(PointRequest::default()).await.unwrap_err();
        assert_eq!(status.message(), "there is no group of this name");
        drop(client);
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
        assert!(!path.exists());
        assert!(matches!(process_server(&path).await, Err(UdsError::NotRunning { .. })));
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(StdListener::bind(&path).unwrap());
        let text = channel(&path).await.unwrap_err().to_string();
        assert!(text.contains("is the agent running?"), "{text}");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(UdsError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_another_agent_took_over_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = bind(&path).unwrap();
        // The old file keeps its inode, so that the new one can't have the same.
        std::fs::hard_link(&path, folder.path().join("old")).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path), Err(UdsError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        let long = folder.path().join("x".repeat(UNIX_PATH_BYTES_MAX));
        assert!(matches!(bind(&long), Err(UdsError::PathTooLong { .. })));
        assert!(matches!(channel(&long).await, Err(UdsError::PathTooLong { .. })));
    }
}
