//! The engine, in both kinds: files, sockets, wake-ups, bounds, errors and its end.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockio::{Access, AlignedBuf, BlockFile, BufPool, Engine, EngineKind, Event, Interest, IoError, Op};
use bytes::Bytes;

const KINDS: [EngineKind; 2] = [EngineKind::Uring, EngineKind::Blocking];
/// Longer than anything takes; a test that gets here fails.
const PATIENCE: Duration = Duration::from_secs(30);

fn engine(kind: EngineKind, depth: u32) -> Engine {
    let engine = Engine::new(kind, depth).expect("io_uring is needed by these tests");
    assert_eq!(engine.kind(), kind);
    engine
}

fn disk(folder: &Path, size: u64) -> Arc<BlockFile> {
    Arc::new(BlockFile::create(&folder.join("disk"), size).unwrap())
}

fn pattern(block: u64) -> Bytes {
    let mut buf = AlignedBuf::zeroed(4096);
    for (index, byte) in buf.iter_mut().enumerate() {
        *byte = (block as usize * 7 + index / 16) as u8 | 1;
    }
    buf.freeze()
}

/// Waits until nothing is in flight and gives (token, result, buffer) of each operation.
fn finish(engine: &mut Engine) -> Vec<(u64, Result<(), IoError>, Option<AlignedBuf>)> {
    let mut done = Vec::new();
    let mut events = Vec::new();
    while engine.in_flight() > 0 {
        engine.wait(Some(PATIENCE), &mut events).unwrap();
        assert!(!events.is_empty(), "timed out");
        for event in events.drain(..) {
            if let Event::Done { token, result, buf } = event {
                done.push((token, result, buf));
            }
        }
    }
    done
}

fn wait_once(engine: &mut Engine, timeout: Duration) -> Vec<Event> {
    let mut events = Vec::new();
    engine.wait(Some(timeout), &mut events).unwrap();
    events
}

#[test]
fn a_queue_deeper_than_the_engine_is_carried_out_completely() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let blocks = 2000;
        let file = disk(folder.path(), blocks * 4096);
        let mut engine = engine(kind, 32);
        for block in 0..blocks {
            let (file, offset) = (Arc::clone(&file), block * 4096);
            let data = pattern(block);
            engine.submit(block, Op::Write { file, offset, data });
        }
        assert_eq!(engine.in_flight(), blocks as usize);
        let mut tokens: Vec<_> = finish(&mut engine)
            .into_iter()
            .map(|(token, result, _)| {
                result.unwrap();
                token
            })
            .collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..blocks).collect::<Vec<_>>(), "each once");
        let pool = BufPool::new(1 << 20);
        for block in 0..blocks {
            let (file, offset) = (Arc::clone(&file), block * 4096);
            let buf = pool.take(4096);
            engine.submit(block, Op::Read { file, offset, buf });
        }
        for (block, result, buf) in finish(&mut engine) {
            result.unwrap();
            assert_eq!(buf.unwrap()[..], pattern(block)[..], "block {block}, {kind:?}");
        }
        assert_eq!(pool.pinned_bytes(), 0);
    }
}

#[test]
fn operations_without_pieces_work_through_the_ring_of_either_kind() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 8 << 20);
        file.write_all_at(&vec![0xaa; 8 << 20], 0).unwrap();
        let mut engine = engine(kind, 4);
        let (a, b, c) = (Arc::clone(&file), Arc::clone(&file), Arc::clone(&file));
        engine.submit(1, Op::Punch { file: a, offset: 1 << 20, len: 1 << 20 });
        engine.submit(2, Op::Zero { file: b, offset: 4 << 20, len: 3 << 20 });
        for (_, result, _) in finish(&mut engine) {
            result.unwrap();
        }
        engine.submit(3, Op::Sync { file: c });
        finish(&mut engine).remove(0).1.unwrap();
        let mut content = vec![1; 8 << 20];
        file.read_exact_at(&mut content, 0).unwrap();
        for (mebibyte, bytes) in content.chunks(1 << 20).enumerate() {
            let expected = if [1, 4, 5, 6].contains(&mebibyte) { 0 } else { 0xaa };
            assert!(bytes.iter().all(|&byte| byte == expected), "MiB {mebibyte}");
        }
    }
}

#[test]
fn data_in_memory_that_direct_io_cannot_take_is_written_all_the_same() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 1 << 20);
        let mut engine = engine(kind, 4);
        let shifted = Bytes::from(vec![7; 8193]).slice(1..);
        let submitted = Arc::clone(&file);
        engine.submit(1, Op::Write { file: submitted, offset: 4096, data: shifted });
        finish(&mut engine).remove(0).1.unwrap();
        let mut content = [0; 16384];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content[4096..12288].iter().all(|&byte| byte == 7));
        assert!(content[12288..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn what_does_not_lie_in_the_file_or_is_not_aligned_fails_and_touches_nothing() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 8192);
        let mut engine = engine(kind, 4);
        let data = |len: usize| AlignedBuf::zeroed(len).freeze();
        let bad = [
            Op::Write { file: Arc::clone(&file), offset: 8192, data: data(512) },
            Op::Write { file: Arc::clone(&file), offset: u64::MAX - 511, data: data(512) },
            Op::Write { file: Arc::clone(&file), offset: 100, data: data(512) },
            Op::Write { file: Arc::clone(&file), offset: 0, data: data(100) },
            Op::Read { file: Arc::clone(&file), offset: 4096, buf: AlignedBuf::zeroed(8192) },
            Op::Zero { file: Arc::clone(&file), offset: 4096, len: 8192 },
            Op::Punch { file: Arc::clone(&file), offset: 1, len: 512 },
        ];
        let count = bad.len();
        for op in bad {
            engine.submit(1, op);
        }
        let done = finish(&mut engine);
        assert_eq!(done.len(), count);
        for (_, result, _) in done {
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        }
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 8192);
    }
}

#[test]
fn an_empty_operation_is_done_at_once() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 8192);
        let mut engine = engine(kind, 4);
        engine.submit(1, Op::Write { file, offset: 0, data: Bytes::new() });
        finish(&mut engine).remove(0).1.unwrap();
    }
}

#[test]
fn a_write_to_a_file_opened_for_reading_fails_with_its_errno_and_place() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        drop(disk(folder.path(), 8192));
        let path = folder.path().join("disk");
        let file = Arc::new(BlockFile::open(&path, Access::ReadOnly).unwrap());
        let mut engine = engine(kind, 4);
        let (a, b) = (Arc::clone(&file), Arc::clone(&file));
        engine.submit(1, Op::Write { file: a, offset: 4096, data: pattern(1) });
        engine.submit(2, Op::Zero { file: b, offset: 4096, len: 4096 });
        for (_, result, _) in finish(&mut engine) {
            let error = result.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
            assert_eq!(error.offset, Some(4096));
            assert!(error.to_string().contains("disk at byte 4096"), "{error}");
        }
    }
}

#[test]
fn a_file_that_shrank_under_a_read_gives_an_error_and_the_buffer_back() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 1 << 20);
        let truncated = std::fs::OpenOptions::new().write(true).open(file.path()).unwrap();
        truncated.set_len(8192).unwrap();
        let mut engine = engine(kind, 4);
        let buf = AlignedBuf::zeroed(16384);
        engine.submit(1, Op::Read { file, offset: 0, buf });
        let (_, result, buf) = finish(&mut engine).remove(0);
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(buf.unwrap().len(), 16384);
    }
}

#[test]
fn every_one_of_many_syncs_is_answered_once() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 1 << 20);
        let mut engine = engine(kind, 64);
        let many: Vec<_> = (0..100).map(|token| (token, Op::Sync { file: Arc::clone(&file) })).collect();
        for (token, op) in many {
            engine.submit(token, op);
        }
        let mut tokens: Vec<_> = finish(&mut engine).iter().map(|done| done.0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn a_descriptor_stays_reported_until_all_is_read() {
    for kind in KINDS {
        let mut engine = engine(kind, 4);
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        engine.watch(ours.as_raw_fd(), 9, Interest::READ).unwrap();
        assert!(wait_once(&mut engine, Duration::ZERO).is_empty());
        theirs.write_all(b"abc").unwrap();
        for expected in *b"abc" {
            let events = wait_once(&mut engine, PATIENCE);
            assert!(
                matches!(events[..], [Event::Ready { token: 9, readable: true, writable: false, hangup: false }]),
                "{events:?}"
            );
            let mut byte = [0];
            ours.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], expected);
        }
        // A report that was under way when the last byte was read is allowed, a second is not.
        let _ = wait_once(&mut engine, Duration::ZERO);
        assert!(wait_once(&mut engine, Duration::ZERO).is_empty());
    }
}

#[test]
fn interest_can_change_and_go() {
    for kind in KINDS {
        let mut engine = engine(kind, 4);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let fd = ours.as_raw_fd();
        engine.watch(fd, 1, Interest::READ).unwrap();
        assert!(wait_once(&mut engine, Duration::ZERO).is_empty());
        engine.watch(fd, 2, Interest::BOTH).unwrap();
        for _ in 0..3 {
            let events = wait_once(&mut engine, PATIENCE);
            assert!(matches!(events[..], [Event::Ready { token: 2, readable: false, writable: true, .. }]));
        }
        theirs.write_all(b"x").unwrap();
        engine.watch(fd, 3, Interest::NONE).unwrap();
        assert!(wait_once(&mut engine, Duration::from_millis(20)).is_empty());
        engine.watch(fd, 4, Interest::READ).unwrap();
        let events = wait_once(&mut engine, PATIENCE);
        assert!(matches!(events[..], [Event::Ready { token: 4, readable: true, .. }]));
        engine.unwatch(fd);
        assert!(wait_once(&mut engine, Duration::from_millis(20)).is_empty());
        engine.unwatch(fd);
        engine.watch(fd, 5, Interest::READ).unwrap();
        let events = wait_once(&mut engine, PATIENCE);
        assert!(matches!(events[..], [Event::Ready { token: 5, readable: true, .. }]));
    }
}

#[test]
fn a_peer_that_is_gone_is_a_hangup_with_its_last_words_readable() {
    for kind in KINDS {
        let mut engine = engine(kind, 4);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        engine.watch(ours.as_raw_fd(), 1, Interest::READ).unwrap();
        theirs.write_all(b"bye").unwrap();
        drop(theirs);
        let events = wait_once(&mut engine, PATIENCE);
        assert!(matches!(events[..], [Event::Ready { token: 1, readable: true, hangup: true, .. }]), "{events:?}");
    }
}

#[test]
fn a_descriptor_number_used_again_reports_only_the_new_one() {
    for kind in KINDS {
        let mut engine = engine(kind, 4);
        for round in 0..50u64 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            engine.watch(ours.as_raw_fd(), round, Interest::READ).unwrap();
            assert!(wait_once(&mut engine, Duration::ZERO).is_empty(), "{kind:?}");
            theirs.write_all(b"x").unwrap();
            let events = wait_once(&mut engine, PATIENCE);
            assert!(matches!(events[..], [Event::Ready { token, .. }] if token == round));
            engine.unwatch(ours.as_raw_fd());
        }
    }
}

#[test]
fn hundreds_of_descriptors_are_watched_at_once() {
    for kind in KINDS {
        let mut engine = engine(kind, 1);
        let mut pairs: Vec<_> = (0..300).map(|_| UnixStream::pair().unwrap()).collect();
        for (token, (ours, _)) in pairs.iter().enumerate() {
            engine.watch(ours.as_raw_fd(), token as u64, Interest::READ).unwrap();
        }
        for (_, theirs) in &mut pairs {
            theirs.write_all(b"x").unwrap();
        }
        let mut seen = vec![false; pairs.len()];
        while seen.contains(&false) {
            let events = wait_once(&mut engine, PATIENCE);
            assert!(!events.is_empty(), "timed out");
            for event in events {
                let Event::Ready { token, .. } = event else { panic!("{event:?}") };
                seen[token as usize] = true;
                engine.unwatch(pairs[token as usize].0.as_raw_fd());
            }
        }
    }
}

#[test]
fn a_wake_from_another_thread_ends_a_wait_without_end() {
    for kind in KINDS {
        let mut engine = engine(kind, 4);
        let waker = engine.waker();
        std::thread::scope(|scope| {
            scope.spawn(move || waker.wake());
            let mut events = Vec::new();
            engine.wait(None, &mut events).unwrap();
            assert!(matches!(events[..], [Event::Woken]));
        });
    }
}

#[test]
fn wakes_are_one_until_seen_and_none_is_lost() {
    for kind in KINDS {
        let mut engine = engine(kind, 4);
        let waker = engine.waker();
        for _ in 0..100 {
            waker.wake();
        }
        assert!(matches!(wait_once(&mut engine, PATIENCE)[..], [Event::Woken]));
        assert!(wait_once(&mut engine, Duration::ZERO).is_empty());

        let sent = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        sent.fetch_add(1, std::sync::atomic::Ordering::Release);
                        waker.wake();
                    }
                });
            }
            // Each wait returns, since what is not yet seen was followed by a wake.
            let mut seen = 0;
            while seen < 6000 {
                let events = wait_once(&mut engine, PATIENCE);
                assert!(matches!(events[..], [Event::Woken]), "a wake was lost at {seen}");
                seen = sent.load(std::sync::atomic::Ordering::Acquire);
            }
        });
    }
}

#[test]
fn a_wait_ends_after_its_time_out_and_not_before() {
    for kind in KINDS {
        let mut engine = engine(kind, 4);
        #[expect(clippy::disallowed_methods, reason = "the engine waits in real time")]
        let now = std::time::Instant::now;
        let start = now();
        assert!(wait_once(&mut engine, Duration::from_millis(30)).is_empty());
        assert!(now() - start >= Duration::from_millis(30));
    }
}

#[test]
fn files_sockets_and_wakes_come_out_of_one_wait() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 1 << 20);
        let mut engine = engine(kind, 4);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        engine.watch(ours.as_raw_fd(), 5, Interest::READ).unwrap();
        theirs.write_all(b"x").unwrap();
        engine.waker().wake();
        engine.submit(6, Op::Write { file, offset: 0, data: pattern(1) });
        let (mut ready, mut woken, mut done) = (false, false, false);
        while !(ready && woken && done) {
            for event in wait_once(&mut engine, PATIENCE) {
                match event {
                    Event::Ready { token: 5, .. } => ready = true,
                    Event::Woken => woken = true,
                    Event::Done { token: 6, result: Ok(()), .. } => done = true,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_dropped_engine_leaves_no_buffer_and_no_file_behind() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 64 << 20);
        let pool = BufPool::new(0);
        let mut engine = engine(kind, 16);
        for block in 0..64 {
            let (file, offset) = (Arc::clone(&file), block << 20);
            let data = pool.take(1 << 20).freeze();
            engine.submit(block, Op::Write { file, offset, data });
        }
        let mut events = Vec::new();
        engine.wait(Some(Duration::ZERO), &mut events).unwrap();
        drop(events);
        drop(engine);
        assert_eq!(pool.pinned_bytes(), 0);
        assert_eq!(Arc::strong_count(&file), 1);
    }
}

#[test]
fn an_idle_engine_may_move_to_another_thread() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let file = disk(folder.path(), 1 << 20);
        let mut engine = engine(kind, 4);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        engine.watch(ours.as_raw_fd(), 5, Interest::READ).unwrap();
        for block in 0..4 {
            engine = std::thread::scope(|scope| {
                let (file, theirs, mut ours) = (&file, &mut theirs, &ours);
                let thread = scope.spawn(move || {
                    let file = Arc::clone(file);
                    let offset = block * 4096;
                    engine.submit(block, Op::Write { file, offset, data: pattern(block) });
                    for (_, result, _) in finish(&mut engine) {
                        result.unwrap();
                    }
                    theirs.write_all(b"x").unwrap();
                    let events = wait_once(&mut engine, PATIENCE);
                    assert!(matches!(events[..], [Event::Ready { token: 5, .. }]));
                    ours.read_exact(&mut [0]).unwrap();
                    engine.waker().wake();
                    while !matches!(wait_once(&mut engine, PATIENCE)[..], [.., Event::Woken]) {}
                    engine
                });
                thread.join().unwrap()
            });
        }
    }
}

#[test]
fn an_engine_chooses_io_uring_where_it_is_allowed() {
    let chosen = Engine::new(EngineKind::Auto, 1).unwrap();
    assert_eq!(chosen.kind(), EngineKind::Uring);
    assert!(Engine::new(EngineKind::Auto, 0).is_ok(), "a depth of 0 is one of 1");
    assert!(Engine::new(EngineKind::Auto, u32::MAX).is_ok());
}
