//! Pickles that would run something, or that take time or memory without end.

use wan_i2v::weights::container::pth::header;

use super::zips::{archive, dict, number, numbers, records, string, tensor};
use super::{assert_refused, golden, names};

/// Expects the pickle to be refused.
#[track_caller]
fn refused(pickle: &[u8], part: &str) {
    assert_refused(&archive(&records(pickle)), part);
}

/// The pickle of a dictionary with `value` beside a tensor.
fn beside(value: &[u8]) -> Vec<u8> {
    let tensor = tensor("FloatStorage", "0", 2, 0, &[2], &[1]);
    dict(&[("w", &tensor), ("x", value)])
}

#[test]
fn pickles_that_python_makes_of_other_objects_are_refused() {
    let expected = [
        ("bytes2", "the global _codecs.encode"),
        ("bytes4", "the opcode 0x43"),
        ("counter2", "the global collections.Counter"),
        ("counter4", "the global collections.Counter"),
        ("eval2", "the global __builtin__.eval"),
        ("eval4", "the global builtins.eval"),
        ("fraction2", "the global fractions.Fraction"),
        ("fraction4", "the global fractions.Fraction"),
        ("getattr2", "the global __builtin__.getattr"),
        ("getattr4", "the global builtins.getattr"),
        ("newobj2", "the global __main__.Plain"),
        ("newobj4", "the global __main__.Plain"),
        (
            "protocol0",
            "begins with 0x28 0x64; expected a pickle of protocol 2 to 5",
        ),
        ("protocol1", "begins with 0x7d 0x71"),
        ("set2", "the global __builtin__.set"),
        ("set4", "the opcode 0x8f"),
        ("system2", "the global posix.system"),
        ("system4", "the global posix.system"),
    ];
    assert_eq!(names(".pkl"), expected.map(|(name, _)| name));
    for (name, part) in expected {
        refused(&golden(&format!("{name}.pkl")), part);
    }
}

#[test]
fn every_opcode_that_could_run_something_is_refused() {
    let tests: [(&[u8], &str); 24] = [
        (b"cos\nsystem\n", "the global os.system"),
        (b"cos\nsystem\nX\x02\0\0\0ls\x85R", "the global os.system"),
        (b"\x8c\x02os\x8c\x06system\x93", "the global os.system"),
        (b"cbuiltins\neval\n", "the global builtins.eval"),
        (b"ctorch\nload\n", "the global torch.load"),
        (
            b"ctorch._utils\n_rebuild_qtensor\n",
            "the global torch._utils._rebuild_qtensor",
        ),
        (
            b"ccollections\nOrderedDict.clear\n",
            "the global collections.OrderedDict.clear",
        ),
        (b"c\x1b[2J\nx\n", "the global \\u{1b}[2J.x"),
        (b"(ios\nsystem\n", "the opcode 0x69"),
        (b"(ccollections\nOrderedDict\no", "the opcode 0x6f"),
        (b"ccollections\nOrderedDict\n)\x81", "the opcode 0x81"),
        (b"ccollections\nOrderedDict\n)}\x92", "the opcode 0x92"),
        (b"\x82\x01", "the opcode 0x82"),
        (b"\x83\x01\0", "the opcode 0x83"),
        (b"\x84\x01\0\0\0", "the opcode 0x84"),
        (b"Pname\n", "the opcode 0x50"),
        (b"\x97", "the opcode 0x97"),
        (b"ctorch\nFloatStorage\n)R", "calls "),
        (b"ccollections\nOrderedDict\nK\x01\x85R", "calls "),
        (
            b"ccollections\nOrderedDict\n}R",
            "calls a function or type with a dictionary",
        ),
        (b"X\x01\0\0\0x)R", "calls a string with a tuple"),
        (
            b"ccollections\nOrderedDict\n}b",
            "sets the state of a function or type",
        ),
        (b"}K\x01b", "sets the state of a dictionary to a number"),
        (b"K\x01K\x02\x93", "a global whose name is no string"),
    ];
    for (instructions, part) in tests {
        refused(&beside(instructions), part);
    }
    // The place is named.
    refused(
        b"\x80\x02cos\nsystem\n.",
        "data.pkl, byte 2: the global os.system",
    );
}

#[test]
fn pickles_that_are_no_programs_are_refused() {
    let tests: [(&[u8], &str); 21] = [
        (b"", "byte 0: the pickle is cut off"),
        (b"\x80\x02.", "byte 2: too few values"),
        (b"\x80\x01}.", "begins with 0x80 0x01"),
        (b"\x80\x06}.", "begins with 0x80 0x06"),
        (b"\x80\x02}}.", "values left"),
        (b"\x80\x02}(.", "too few values"),
        (b"\x80\x02}.x", "1 bytes follow the end of the pickle"),
        (b"\x80\x02t", "no mark"),
        (b"\x80\x02}(K\x01u.", "a key without a value"),
        (b"\x80\x02K\x01(K\x01K\x01u.", "sets entries of a number"),
        (b"\x80\x02(K\x01K\x01u.", "too few values"),
        (b"\x80\x02K\x01K\x01a.", "appends to a number"),
        (b"\x80\x02h\x01.", "the memo has no entry 1"),
        (b"\x80\x02q\x01.", "too few values"),
        (b"\x80\x02X\xff\xff\xff\xffx", "cut off: 4294967295 bytes"),
        (b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffx", "cut off"),
        (b"\x80\x02X\x01\0\0\0\xff", "not UTF-8"),
        (b"\x80\x02cx", "no end"),
        (b"\x80\x02c\xff\n\xff\n", "not UTF-8"),
        (b"\x80\x02K\x01Q.", "not that of a storage"),
        (b"\x80\x02)Q.", "not that of a storage"),
    ];
    for (pickle, part) in tests {
        refused(pickle, part);
    }
}

#[test]
fn rebuilding_with_other_arguments_is_refused() {
    let storage = [
        b"(".to_vec(),
        string("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        string("0"),
        string("cpu"),
        number(2),
        b"tQ".to_vec(),
    ]
    .concat();
    let call = |function: &str, arguments: &[&[u8]]| {
        let inner = arguments.concat();
        let global = format!("ctorch._utils\n{function}\n(");
        beside(&[global.as_bytes(), &inner, b"tR"].concat())
    };
    let (zero, two, one) = (number(0), numbers(&[2]), numbers(&[1]));
    let v2 = "_rebuild_tensor_v2";
    let good: [&[u8]; 6] = [&storage, &zero, &two, &one, b"\x89", b"N"];
    assert!(header(&archive(&records(&call(v2, &good)))).is_ok());
    refused(&call(v2, &good[..5]), "calls ");
    for i in 0..4 {
        let mut bad = good;
        bad[i] = b"N";
        refused(&call(v2, &bad), "arguments of other kinds");
    }
    let with = |last: &'static [u8]| [good.as_slice(), &[last]].concat();
    assert!(header(&archive(&records(&call(v2, &with(b"}"))))).is_ok());
    refused(
        &call(v2, &with(b"}X\x03\0\0\0negX\x01\0\0\0xs")),
        "metadata",
    );
    refused(&call(v2, &with(b"K\x01")), "metadata");
    // A dtype goes with an untyped storage only.
    refused(
        &call("_rebuild_tensor_v3", &with(b"ctorch\nfloat32\n")),
        "no type, or of two",
    );
    refused(&call("_rebuild_tensor_v3", &good), "calls ");
    refused(&call("_rebuild_parameter", &[b"}", b"N", b"N"]), "calls ");
}

#[test]
fn names_that_are_not_clear_are_refused() {
    let w = tensor("FloatStorage", "0", 2, 0, &[2], &[1]);
    refused(
        &dict(&[("w", &w), ("w", &w)]),
        "\"w\" stands in a dictionary twice",
    );
    refused(
        &dict(&[("w", &w), ("w", b"N")]),
        "\"w\" stands in a dictionary twice",
    );
    let nested = [b"}".as_slice(), &string("b"), &w, b"s"].concat();
    refused(
        &dict(&[("a", &nested), ("a.b", &w)]),
        "two tensors are named \"a.b\"",
    );
    refused(&dict(&[("", &w)]), "empty name");
    refused(&dict(&[(&"n".repeat(513), &w)]), "a name of 513 bytes");
    let key = |key: &[u8]| [b"\x80\x02}", key, &w, b"s."].concat();
    refused(&key(b"N"), "a key is None");
    refused(&key(b")"), "a key is a tuple");
    assert!(header(&archive(&records(&key(b"K\x07")))).is_ok());
}

#[test]
fn only_a_wrapper_around_everything_is_left_out() {
    let w = tensor("FloatStorage", "0", 2, 0, &[2], &[1]);
    let inner = [b"}".as_slice(), &string("w"), &w, b"s"].concat();
    let found = |entries: &[(&str, &[u8])]| {
        let header = header(&archive(&records(&dict(entries)))).unwrap();
        let names: Vec<String> = header.tensors.into_iter().map(|t| t.name).collect();
        names.join(" ")
    };
    assert_eq!(found(&[("a", &inner)]), "w");
    assert_eq!(
        found(&[("step", b"K\x01"), ("a", &inner), ("b", b"}")]),
        "w"
    );
    assert_eq!(found(&[("a", &inner), ("b", &inner)]), "a.w b.w");
    assert_eq!(found(&[("w", &w), ("b", &inner)]), "w b.w");
    // One level only: what is further in is part of the names.
    let outer = [b"}".as_slice(), &string("conv"), &inner, b"s"].concat();
    assert_eq!(found(&[("model", &outer)]), "conv.w");
}

#[test]
fn negative_numbers_are_seen_as_such() {
    let good = tensor("FloatStorage", "0", 2, 0, &[2], &[1]);
    let (long, short) = (number(2), b"\x8a\x01\xfe".to_vec());
    let at = good.windows(10).rposition(|w| w == long).unwrap();
    let bad = [&good[..at], &short, &good[at + 10..]].concat();
    refused(&dict(&[("w", &bad)]), "shape that are no counts");
}

#[test]
fn numbers_in_the_memo_do_not_allocate() {
    let pickle = beside(b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff\x86");
    assert!(header(&archive(&records(&pickle))).is_ok());
}

#[test]
fn deep_and_endless_containers_are_refused() {
    let deep = |instruction: &[u8], count| {
        let value = [b")".to_vec(), instruction.repeat(count)].concat();
        beside(&value)
    };
    refused(&deep(b"\x85", 1_000_000), "more than 8 containers");
    refused(&deep(b"\x85", 9), "more than 8 containers");
    assert!(header(&archive(&records(&deep(b"\x85", 7)))).is_ok());
    refused(&beside(&b"(".repeat(1_000_000)), "too few values");
    // A list and a dictionary that hold themselves.
    refused(&beside(b"]q\0h\0a"), "more than 8 containers");
    refused(&beside(b"}q\0X\x01\0\0\0dh\0s"), "more than 8 containers");
    refused(
        &beside(&b"N".repeat(3_000_000)),
        "more than 2097152 instructions",
    );
}

#[test]
fn containers_that_multiply_are_refused() {
    // Each list holds the one before a hundred times; the first is empty.
    let tensor = tensor("FloatStorage", "0", 2, 0, &[2], &[1]);
    let list = [b"](".as_slice(), &b"h\0".repeat(100), b"eq\0"].concat();
    let lists: Vec<(String, &[u8])> = (0..6)
        .map(|i| (format!("list{i}"), if i == 0 { b"]q\0" } else { &list[..] }))
        .collect();
    let entries: Vec<(&str, &[u8])> = lists.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    refused(&dict(&entries), "more than 1048576 entries");

    let mut value = [tensor, b"q\0]q\x01(".to_vec()].concat();
    value.extend(b"h\0".repeat(70_000));
    value.extend(b"e\x86");
    refused(&beside(&value), "more than 65536 tensors");
}
