//! Every seed keeps every invariant of its target: the same checks as under the fuzzer, without it.

use std::path::Path;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut found: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{}", folder.display());
    found
}

macro_rules! hold {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            for (name, seed) in seeds(stringify!($target)) {
                println!("{name}");
                portcullis_fuzz::$target::check(&seed);
            }
        }
    )*};
}

hold! { credentials framing request rules target token yaml }
