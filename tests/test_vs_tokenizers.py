"""The benchmark beside `tokenizers`: it reads what it should, and says when results differ."""
import pytest

from bench import vs_tokenizers


def test_bench(tmp_path, capsys):
    (tmp_path / "a.fa").write_text(">one\nacgtacgtta\nACGT\n>two\nGGGGGGGGCA\n")
    assert vs_tokenizers.read_documents(str(tmp_path / "a.fa"), 1) == ["ACGTACGTTAACGT", "GGGGGGGGCA"]
    (tmp_path / "b.txt").write_text("One\ntwo.\n\n> quoted\n\n\nThree.")
    assert vs_tokenizers.read_documents(str(tmp_path / "b.txt"), 1) == ["One\ntwo.", "> quoted", "Three."]
    assert vs_tokenizers.read_documents(str(tmp_path / "b.txt"), 1e-6) == ["One\ntwo."]
    vs_tokenizers.main([str(tmp_path / "a.fa"), "--vocab_size=270", "--rounds=1"])
    out = capsys.readouterr().out
    assert "vocabulary 270, split mixed" in out and "\nours " in out
    assert ("merges and ids: the same" in out) == ("\ntokenizers " in out)


def test_missing_file_is_named():
    with pytest.raises(OSError, match="No such file.*no.fa"):
        vs_tokenizers.main(["no.fa", "--rounds=1"])
