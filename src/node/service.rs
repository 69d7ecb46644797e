//! The control service's sockets, on both sides. What is said on them: [`crate::join::service`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use zeroize::Zeroizing;

use super::control::not_accepted;
use crate::join::service::{Answer, MAX_ANSWER, MAX_REQUEST, PORT, Refusal, Request};

/// Connections served at a time; further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may take, from accept to close.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

/// A request on its way to the node.
pub struct Asked {
    /// Whose tunnel address asks.
    pub from: IpAddr,
    /// What it asks.
    pub request: Request,
    answer: oneshot::Sender<Answer>,
}

impl Asked {
    /// Answers; the asker may have gone.
    pub fn reply(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

/// The exit's end.
pub struct Server {
    requests: mpsc::Receiver<Asked>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// Listens on the tunnel addresses, and nowhere else.
    pub async fn bind(addresses: &[IpAddr]) -> io::Result<Server> {
        let (sender, requests) = mpsc::channel(MAX_CONNECTIONS);
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut listeners = Vec::new();
        for address in addresses {
            listeners.push(TcpListener::bind((*address, PORT)).await?);
        }
        let accepting = listeners
            .into_iter()
            .map(|listener| tokio::spawn(accept(listener, sender.clone(), slots.clone())))
            .collect();
        Ok(Server { requests, accepting })
    }
}

/// The next request; never one where there is no service.
pub async fn next(server: &mut Option<Server>) -> Asked {
    if let Some(server) = server
        && let Some(asked) = server.requests.recv().await
    {
        return asked;
    }
    std::future::pending().await
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn accept(listener: TcpListener, node: mpsc::Sender<Asked>, slots: Arc<Semaphore>) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let node = node.clone();
                tokio::spawn(async move {
                    let served = tokio::time::timeout(CONNECTION_LIMIT, serve(stream, from.ip(), node)).await;
                    tracing::debug!(%from, done = matches!(served, Ok(Ok(()))), "control service");
                    drop(slot);
                });
            }
            Err(error) => not_accepted(error).await,
        }
    }
}

async fn serve(mut stream: TcpStream, from: IpAddr, node: mpsc::Sender<Asked>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = Vec::new();
    BufReader::new(read.take(MAX_REQUEST as u64 + 1)).read_until(b'\n', &mut line).await?;
    let answer = match Request::parse(&line) {
        Err(why) => Answer::Refused { why },
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            let asked = Asked { from: from.to_canonical(), request, answer };
            if node.send(asked).await.is_err() {
                return Ok(());
            }
            answered.await.unwrap_or(Answer::Refused { why: Refusal::Failed })
        }
    };
    write.write_all(&answer.encode()).await?;
    write.shutdown().await
}

/// Asks the service of the exit at `exit` from the tunnel address `from`.
pub async fn ask(from: IpAddr, exit: IpAddr, request: &Request) -> io::Result<Answer> {
    let socket = if exit.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // closed at once: what it would still say, and say again, could leave beside a tunnel that has gone meanwhile
    socket.set_zero_linger()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let mut stream = socket.connect(SocketAddr::new(exit, PORT)).await?;
    stream.write_all(&request.encode()).await?;
    // room for all at once: a growing buffer would leave copies of the preshared key behind
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_ANSWER + 1));
    BufReader::new((&mut stream).take(MAX_ANSWER as u64 + 1)).read_until(b'\n', &mut line).await?;
    Answer::parse(&line).map_err(io::Error::other)
}
