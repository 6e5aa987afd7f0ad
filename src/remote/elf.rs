//! Which machine a program is for, by the head of its file: elf(5), `e_machine` as the ELF
//! specification and linux/elf-em.h have it. Knows no more of the format than that.

/// What programs for a machine have in their heads: class (1: 32 bits, 2: 64 bits), order of bytes
/// (1: little-endian, 2: big-endian), machine.
type Kind = (u8, u8, u16);

/// What a machine's kernel calls it (`uname -m`), and programs for it.
const MACHINES: [(&[&str], Kind); 14] = [
    (&["x86_64"], (2, 1, 62)),
    (&["i386", "i486", "i586", "i686", "x86_64"], (1, 1, 3)),
    (&["aarch64"], (2, 1, 183)),
    (&["armv5tel", "armv6l", "armv7l", "armv8l"], (1, 1, 40)),
    (&["riscv64"], (2, 1, 243)),
    (&["riscv32"], (1, 1, 243)),
    (&["loongarch64"], (2, 1, 258)),
    (&["ppc64le"], (2, 1, 21)),
    (&["ppc64"], (2, 2, 21)),
    (&["ppc"], (1, 2, 20)),
    (&["s390x"], (2, 2, 22)),
    (&["mips64"], (2, 2, 8)),
    (&["mips"], (1, 2, 8)),
    (&["sparc64"], (2, 2, 43)),
];

/// Tells why a program is none for a machine. Of a machine that is not known here, only that it
/// is a program is looked at.
pub fn check(program: &[u8], machine: &str) -> Result<(), String> {
    let Some(kind) = kind_of(program) else { return Err("is no program for Linux (no ELF file)".into()) };
    let fitting: Vec<_> = MACHINES.iter().filter(|(names, _)| names.contains(&machine)).collect();
    if fitting.is_empty() || fitting.iter().any(|(_, wanted)| *wanted == kind) {
        return Ok(());
    }
    let name = MACHINES.iter().find(|(_, known)| *known == kind).map(|(names, _)| names[0]);
    Err(name.map_or("is a program for another machine".into(), |name| format!("is a program for {name}")))
}

/// Class, order of bytes and machine of an executable file or a shared object, as static programs
/// that can lie anywhere are.
fn kind_of(program: &[u8]) -> Option<Kind> {
    const EXECUTABLE: u16 = 2;
    const SHARED: u16 = 3;
    let (&[0x7f, b'E', b'L', b'F', class, order], rest) = program.split_first_chunk()? else { return None };
    // Six bytes are behind, e_type is at 16.
    let number = |at: usize| {
        let bytes = *rest.get(at - 6..)?.first_chunk()?;
        Some(if order == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    [EXECUTABLE, SHARED].contains(&number(16)?).then_some((class, order, number(18)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(class: u8, order: u8, kind: u16, machine: u16) -> Vec<u8> {
        let number = |number: u16| if order == 2 { number.to_be_bytes() } else { number.to_le_bytes() };
        [&[0x7f, b'E', b'L', b'F', class, order, 1][..], &[0; 9], &number(kind), &number(machine)].concat()
    }

    #[test]
    fn programs_are_told_apart_by_their_heads() {
        let (arm64, i386) = (head(2, 1, 3, 183), head(1, 1, 2, 3));
        assert_eq!(check(&arm64, "aarch64"), Ok(()));
        assert_eq!(check(&arm64, "x86_64"), Err("is a program for aarch64".into()));
        assert_eq!(check(&i386, "x86_64"), Ok(()));
        assert_eq!(check(&i386, "i686"), Ok(()));
        assert!(check(&i386, "aarch64").is_err());
        assert_eq!(check(&head(2, 2, 2, 22), "s390x"), Ok(()));
        assert!(check(&head(2, 1, 2, 21), "ppc64").is_err());
        assert_eq!(check(&arm64, "never-heard-of"), Ok(()));
        for bad in [&b"#!/bin/sh\n"[..], b"", b"\x7fELF", &head(2, 1, 1, 183), &arm64[..19]] {
            assert!(check(bad, "aarch64").is_err_and(|why| why.contains("no ELF")), "{bad:?}");
        }
    }

    #[test]
    fn this_program_is_one_for_this_machine() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let machine = if cfg!(target_arch = "x86") { "i686" } else { std::env::consts::ARCH };
        assert_eq!(check(&program, if machine == "arm" { "armv7l" } else { machine }), Ok(()));
    }
}
