//! A TCP stream that sends small things in one piece.
//!
//! hyper keeps head and body apart and hands both to one gathering write. For a few hundred bytes the
//! kernel takes longer over that (`writev`) than over copying them together and sending them (`send`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Up to so many bytes are copied together.
const SMALL: usize = 2048;

/// See the module.
#[derive(Debug)]
pub struct Stream(pub TcpStream);

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.0);
        if let [only] = bufs {
            return stream.poll_write(cx, only);
        }
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > SMALL {
            return stream.poll_write_vectored(cx, bufs);
        }
        let (mut together, mut length) = ([0; SMALL], 0);
        for buf in bufs {
            together[length..length + buf.len()].copy_from_slice(buf);
            length += buf.len();
        }
        stream.poll_write(cx, &together[..length])
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_written_in_pieces_arrives_whole_and_in_order() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut writer = Stream(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let (mut reader, _) = listener.accept().await.unwrap();
        for sizes in
            [vec![5], vec![0, 3], vec![100, 1024], vec![1024, 1024], vec![1024, 1025], vec![10, 60_000, 7]]
        {
            let pieces: Vec<Vec<u8>> =
                sizes.iter().map(|size| (0..*size).map(|n: usize| n as u8).collect()).collect();
            let all = pieces.concat();
            let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut left = &mut slices[..];
            let expected = all.len();
            let reading = tokio::spawn(async move {
                let mut got = vec![0; expected];
                reader.read_exact(&mut got).await.unwrap();
                (reader, got)
            });
            while !left.is_empty() {
                let written = writer.write_vectored(left).await.unwrap();
                IoSlice::advance_slices(&mut left, written);
            }
            let (back, got) = reading.await.unwrap();
            reader = back;
            assert!(got == all, "{sizes:?}");
        }
    }
}
