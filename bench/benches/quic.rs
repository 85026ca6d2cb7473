//! The link alone: bytes on one stream, both ends in this process, with the endpoints that the agents use.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use proto::endpoint;
use proto::tls::TlsPaths;

const BYTES: usize = 32 << 20;
const CHUNK: usize = 128 << 10;

fn keys(folder: &Path, name: &str) -> TlsPaths {
    TlsPaths {
        ca: folder.join("ca.pem"),
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    }
}

fn make_keys(folder: &Path) {
    let words = ["pki", "--process-server", "ps-1", "--master-target", "mt-1", "--san", "127.0.0.1", "--dir"];
    let made = Command::new(tests::tool::binary("master-target")).args(words).arg(folder).output();
    assert!(made.expect("master-target starts").status.success(), "master-target pki fails");
}

fn stages(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys_in = folder.path().join("keys");
    make_keys(&keys_in);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (sender, _client, _server) = runtime.block_on(async {
        let listen = "127.0.0.1:0".parse().expect("an address");
        let server = endpoint::server(listen, &keys(&keys_in, "mt-1")).expect("a server");
        let client = endpoint::client(&keys(&keys_in, "ps-1")).expect("a client");
        let address = server.local_addr().expect("an address");
        let connecting = client.connect(address, "mt-1").expect("a connection");
        let (sender, receiver) = tokio::join!(connecting, async { server.accept().await.expect("incoming").await });
        let receiver = receiver.expect("accepted");
        tokio::spawn(async move {
            while let Ok(mut stream) = receiver.accept_uni().await {
                tokio::spawn(async move { while let Ok(Some(_)) = stream.read_chunk(usize::MAX, true).await {} });
            }
        });
        (sender.expect("connected"), client, server)
    });
    let chunk = Bytes::from(vec![7; CHUNK]);
    let mut group = criterion.benchmark_group("quic");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("one stream, 32 MiB", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut stream = sender.open_uni().await.expect("a stream");
                for _ in 0..BYTES / CHUNK {
                    stream.write_chunk(chunk.clone()).await.expect("written");
                }
                stream.finish().expect("finished");
                // Ends when the other side has acknowledged all.
                stream.stopped().await.expect("acknowledged");
            });
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(4));
    targets = stages
}
criterion_main!(benches);
