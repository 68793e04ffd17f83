//! The first bytes of a connection: HTTP/2 is not spoken here.
//!
//! The server's library serves both versions where connections may be upgraded, and HTTP/2 without a limit in time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How a client begins with HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Takes connections as another acceptor does, and ends those that begin with HTTP/2.
#[derive(Debug, Clone)]
pub(crate) struct FirstHttp<A>(pub(crate) A);

impl<I, S, A> Accept<I, S> for FirstHttp<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
{
    type Stream = Greeted<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let accepted = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepted.await?;
            Ok((Greeted { stream, matched: Some(0) }, service))
        })
    }
}

/// A connection whose first bytes are looked at.
#[derive(Debug)]
pub(crate) struct Greeted<S> {
    stream: S,
    /// How many of the first bytes are those of the preface; nothing once one was not.
    matched: Option<usize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(matched) = self.matched {
            let rest = &PREFACE[matched..];
            let read = &buffer.filled()[before..];
            let len = read.len().min(rest.len());
            if len == rest.len() && read[..len] == *rest {
                let text = "HTTP/2 is not spoken here; use HTTP/1.1";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
            }
            self.matched = (read[..len] == rest[..len]).then_some(matched + len);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    async fn read(parts: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut client, stream) = duplex(64);
        let mut greeted = Greeted { stream, matched: Some(0) };
        let mut read = Vec::new();
        for part in parts {
            client.write_all(part).await?;
            greeted.read_buf(&mut read).await?;
        }
        Ok(read)
    }

    #[tokio::test]
    async fn only_the_preface_ends_a_connection_in_whatever_pieces_it_comes() {
        for parts in [&[b"PRI * HTTP/2.0\r\n".as_slice()][..], &[b"P", b"RI * HTTP/2", b".0"]] {
            assert_eq!(read(parts).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        for parts in
            [&[b"GET / HTTP/1.1".as_slice(), b"PRI * HTTP/2.0"][..], &[b"PRI * HTTP/1.1", b"PRI * HTTP/2.0"], &[b"PR"]]
        {
            assert_eq!(read(parts).await.unwrap(), parts.concat());
        }
    }
}
