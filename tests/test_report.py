def test_rows_are_data(small_cnn):
    rows = small_cnn.qmodel.summary().nodes
    convs = [row for row in rows if row.op == "conv"]
    assert len(convs) == 10  # twelve, of which three are merged into one
    assert all(row.precision == "int8" and row.reason == "" for row in rows)
    stem = convs[0]
    assert stem.name == "SmallCNN/ConvNorm_0/Conv_0"
    assert stem.fused == ("bias", "relu6", "requantize")
    assert stem.macs == 12 * 12 * 3 * 3 * 3 * 16
    assert stem.dtypes == (("int8",), "uint8")
    assert [row.fused for row in convs if "residual" in row.fused] == [("bias", "residual", "relu", "requantize")] * 2
    assert sum("merged:3" in row.fused for row in convs) == 1
    (head,) = [row for row in rows if row.op == "dot"]
    assert (head.fused, head.macs, head.dtypes[1]) == (("bias",), 32 * 10, "float32")
    assert {row.macs for row in rows if row.op not in ("conv", "dot")} == {0}


def test_the_table_says_what_there_is(small_cnn):
    text = str(small_cnn.qmodel.summary())
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("SmallCNN/") or line.startswith("input/")]) == len(
        small_cnn.qmodel.summary().nodes
    )
    assert "100.0% of" in text
    assert "float: nothing" in text
    assert "batch: any size" in text
    assert repr(small_cnn.qmodel) == "QuantizedModel(18 of 18 nodes quantized)"
