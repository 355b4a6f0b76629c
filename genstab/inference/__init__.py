"""Load models from files of many kinds, call them in eval mode, and apply them to folders of images."""
