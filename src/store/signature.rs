//! Signatures of heads, as ssh makes them: by ssh-keygen with whatever key its user has, checked here.
//! The format is that of PROTOCOL.sshsig of OpenSSH, in the namespace `holesync`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve, PublicKey, SshSig};

use crate::error::{Error, Result, escape};

const NAMESPACE: &str = "holesync";
/// Bytes of a file of keys.
const MOST_KEYS: u64 = 1 << 20;

/// What a key signs so that it becomes known which one it is: no head of a version.
const WHO: &[u8] = b"whose signature is this?\n";

/// A key of ssh that signs: a private key, or a public one whose private key an agent has.
#[derive(Debug, Clone)]
pub struct Signer {
    path: PathBuf,
    public: KeyData,
}

impl Signer {
    /// Looks for a key, and has it sign something.
    ///
    /// # Errors
    ///
    /// When there is none, and those of [`Signer::sign`].
    pub fn new(path: &Path) -> Result<Signer> {
        look_for(path)?;
        let (_, public) = sign(WHO, path)?;
        Ok(Signer { path: path.into(), public })
    }

    /// Signs a line, as `ssh-keygen -Y sign` does.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when ssh-keygen cannot be run, or does not sign.
    pub fn sign(&self, line: &[u8]) -> Result<Vec<u8>> {
        let (signature, public) = sign(line, &self.path)?;
        if public != self.public {
            let why = "is another key than it was when this began: run it again";
            return Err(Error::refused(&self.path, why));
        }
        Ok(signature)
    }

    /// Whether a line is signed by this key.
    pub fn has_signed(&self, line: &[u8], signature: &[u8]) -> bool {
        signed_by(line, signature).is_some_and(|public| public == self.public)
    }
}

/// Signs a line. Returns the signature, and whose it is.
fn sign(line: &[u8], key: &Path) -> Result<(Vec<u8>, KeyData)> {
    let refused = |why: String| Error::refused(key, why);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let cannot = |error| refused(format!("cannot sign, as ssh-keygen cannot be run: {error}"));
    let mut child = command.spawn().map_err(cannot)?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it says of its end is why it did not read.
        let _ = stdin.write_all(line);
    }
    let output = child.wait_with_output().map_err(cannot)?;
    if !output.status.success() {
        return Err(refused(format!("cannot sign: {}", escape(output.stderr.trim_ascii()))));
    }
    let public = signed_by(line, &output.stdout).ok_or_else(|| {
        let why = "signs in a way that --trust does not know: use a key of ed25519, or of ECDSA with P-256";
        refused(why.into())
    })?;
    Ok((output.stdout, public))
}

/// Whether a signature is one of a line, by whatever key.
pub fn fits(line: &[u8], signature: &[u8]) -> bool {
    signed_by(line, signature).is_some()
}

/// The key that has signed a line; `None`: the signature is none of it.
fn signed_by(line: &[u8], signature: &[u8]) -> Option<KeyData> {
    let signature = SshSig::from_pem(signature).ok()?;
    let public = signature.public_key().clone();
    PublicKey::from(public.clone()).verify(NAMESPACE, line, &signature).ok()?;
    Some(public)
}

/// Looks for a key: a private one, or a public one of which an agent has the private.
fn look_for(key: &Path) -> Result<()> {
    let mut public = key.as_os_str().to_owned();
    public.push(".pub");
    match fs::metadata(key) {
        Err(error) if fs::metadata(&public).is_err() => {
            Err(Error::file("read the key that is to sign,", key)(error))
        }
        _ => Ok(()),
    }
}

/// Whether what a key signs can be checked here.
fn is_known(key: &PublicKey) -> bool {
    match key.algorithm() {
        Algorithm::Ecdsa { curve } => curve == EcdsaCurve::NistP256,
        Algorithm::Dsa | Algorithm::Rsa { .. } => false,
        _ => true,
    }
}

/// Keys that are trusted.
#[derive(Debug, Clone)]
pub struct Trusted {
    keys: Vec<PublicKey>,
    path: PathBuf,
}

impl Trusted {
    /// Reads a file of public keys, one a line, as in authorized_keys without options.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for a file without a key, or with something else.
    pub fn read(path: &Path) -> Result<Trusted> {
        let length = fs::metadata(path).map_err(Error::file("read", path))?.len();
        if length > MOST_KEYS {
            return Err(Error::refused(path, "is no file of public keys"));
        }
        let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: std::result::Result<Vec<_>, _> = lines.map(PublicKey::from_openssh).collect();
        let keys = keys.map_err(|error| {
            let why = format!("is no file of public keys, as ssh-keygen writes them: {error}");
            Error::refused(path, why)
        })?;
        if keys.is_empty() {
            return Err(Error::refused(path, "has no public key"));
        }
        if !keys.iter().any(is_known) {
            let why = "has no key of a kind that --trust knows: sign with one of ed25519, or of ECDSA with P-256, and name that";
            return Err(Error::refused(path, why));
        }
        Ok(Trusted { keys, path: path.to_path_buf() })
    }

    /// Refuses a line that none of the keys has signed.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`], with the address that it came from.
    pub fn check(&self, line: &[u8], signature: &[u8], address: &str) -> Result<()> {
        let wrong = |what: String| Error::Protocol { peer: address.into(), what };
        if signature.is_empty() {
            return Err(wrong("it is not signed, and --trust wants a signature".into()));
        }
        let signature = SshSig::from_pem(signature)
            .map_err(|error| wrong(format!("what follows its line is no signature: {error}")))?;
        let is_right = |key: &PublicKey| key.verify(NAMESPACE, line, &signature).is_ok();
        if self.keys.iter().any(is_right) {
            return Ok(());
        }
        let keys = self.path.display();
        Err(wrong(format!("it is not signed by a key of {keys}: it may be another's")))
    }
}
