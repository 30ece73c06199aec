"""What the columns of a table of samples are usually called."""

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "image_bytes")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
